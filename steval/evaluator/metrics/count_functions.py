"""Metrics on counts, with cell-eval2 0.20.0's values under its preset `vcc2026`; each a pure function of `CountInputs`.

A perturbation's own gene is left out everywhere: it is known beforehand. Significant: FDR under 0.05 in float64. A perturbation
for which a value is not defined is missing from the dictionary. Formulas: docs/scoring.md.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from steval.errors import EvaluationError
from steval.evaluator.measure.count_rules import BULK_TARGET

if TYPE_CHECKING:
    from steval.evaluator.metrics.count_inputs import CountInputs

Options = dict[str, Any]
PerPerturbation = dict[str, float]

SIGNIFICANT = 0.05
PURITY = 0.9
"""Share of right directions down to which the ranking is followed."""
FEWEST_GENES = 10
"""Significant genes that fold changes are compared over."""


def discrimination(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """1 − rank / (P − 1) of the right perturbation among real effects, nearest first by cosine distance; 0 to 1, best 1.

    The genes of all perturbations are left out. Equally near ones share the mean of their ranks.
    """
    kept = np.ones(len(inputs.genes), dtype=bool)
    kept[inputs.own_gene[inputs.own_gene >= 0]] = False
    if not kept.any():
        raise EvaluationError("every measured gene is the own gene of a perturbation, so nothing is left to compare")
    predicted = (inputs.pred_profiles - inputs.pred_control)[:, kept]
    real = (inputs.real_profiles - inputs.real_control)[:, kept]
    distances = _cosine_distances(predicted, real)
    own = np.diagonal(distances)[:, None]
    ranks = (distances < own).sum(axis=1) + ((distances == own).sum(axis=1) - 1) / 2.0
    most = len(inputs.perturbations) - 1
    return inputs.by_name(np.ones(1) if most == 0 else 1.0 - ranks / most)


def _cosine_distances(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`[P predicted, P real]`, 0 to 2; 1 from and to what has no length."""
    norms = [np.sqrt(np.einsum("ij,ij->i", effects, effects)) for effects in (predicted, real)]
    lengths = norms[0][:, None] * norms[1][None, :]
    products = predicted @ real.T
    similarity = np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)
    return np.clip(1.0 - similarity, 0.0, 2.0)


def squared_error(options: Options, inputs: "CountInputs") -> PerPerturbation:
    """Squared distance of the profiles over genes, less what sampling alone gives; any number, best 0.

    With the option `capped`, the prediction's part of that is bounded: by the real side's, and in all by what the predicted
    profiles really scatter (`scatter_ratio`).
    """
    taken = inputs.pred.correction
    if options["capped"]:
        claim = np.minimum(taken, inputs.real.correction)
        taken = claim * min(1.0, scatter_ratio(inputs))
    return inputs.by_name(_distance(inputs, inputs.pred_profiles, inputs.real_profiles, taken + inputs.real.correction))


def effect_size(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """Squared distance of the real profile from the real controls' over genes, less what sampling alone gives."""
    noise = inputs.real.correction + inputs.real.control_correction
    control = np.broadcast_to(inputs.real_control, inputs.real_profiles.shape)
    return inputs.by_name(_distance(inputs, inputs.real_profiles, control, noise))


def relative_error(_options: Options, inputs: "CountInputs") -> float:
    """Sum of the capped squared errors over the sum of the effect sizes: 1 for the control cells, best 0."""
    parts = (squared_error({"capped": True}, inputs), effect_size({}, inputs))
    sums = [float(np.sum(list(part.values()))) for part in parts]
    if not sums[1] > 0:
        raise EvaluationError(
            "the real effects are no larger than sampling noise (their corrected sizes add up to "
            f"{sums[1]:.3g}), so an error relative to them is not defined"
        )
    return sums[0] / sums[1]


def scatter_ratio(inputs: "CountInputs") -> float:
    """Scatter of the predicted profiles over perturbations beside the noise that is claimed for them; infinite for no claim.

    About 1 or more for cells that are drawn honestly; near 0 where cells scatter but their errors cancel in every profile.
    """
    compared = _num_compared(inputs)
    weights = np.divide(1.0, compared, out=np.zeros(len(compared)), where=compared > 0)
    claim = float((np.minimum(inputs.pred.correction, inputs.real.correction) * weights).sum())
    if claim <= 0:
        return float("inf")
    deviations = inputs.pred_profiles - inputs.pred_profiles.mean(axis=0)
    counted = np.repeat(weights[:, None], deviations.shape[1], axis=1)
    rows = np.flatnonzero(inputs.own_gene >= 0)
    counted[rows, inputs.own_gene[rows]] = 0.0
    mass = counted.sum(axis=0)
    first = (deviations * counted).sum(axis=0)
    second = (deviations**2 * counted).sum(axis=0)
    usable = ((counted > 0).sum(axis=0) >= 2) & (mass > 0)
    spread = second[usable] - first[usable] ** 2 / mass[usable]
    return float(np.maximum(spread, 0.0).sum()) / claim


def mass_ratio(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """Total of the real profile over 50,000: 1, or 0 without counts."""
    return inputs.by_name(np.expm1(inputs.real_profiles).sum(axis=1) / BULK_TARGET)


def fidelity_yield(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """Predicted significant genes of the right direction, over the larger of both sides' numbers of them; 0 to 1, best 1."""
    adjudicable, right = _directions(inputs)
    called = inputs.without_own(inputs.pred_de.significant(SIGNIFICANT)) & adjudicable
    wanted = inputs.without_own(inputs.real_de.significant(SIGNIFICANT)).sum(axis=1)
    larger = np.maximum(called.sum(axis=1), wanted)
    return inputs.by_name(_share((called & right).sum(axis=1), larger))


def reach(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """How far down the predicted ranking of the real significant genes 90 % of the directions are right, over their number.

    Ranked by significant or not, FDR, p, larger fold change, name; 0 to 1, best 1.
    """
    adjudicable, right = _directions(inputs)
    significant = inputs.without_own(inputs.real_de.significant(SIGNIFICANT))
    wanted = significant.sum(axis=1)
    depths = np.zeros(len(wanted))
    pred = inputs.pred_de
    for row in np.flatnonzero(wanted > 0):
        genes = np.flatnonzero(significant[row] & inputs.pred_de.present)
        fdr = pred.fdr[row, genes]
        keys = (
            inputs.name_order[genes], -np.abs(pred.log2_fold_change[row, genes]), pred.p_value[row, genes], fdr,
            ~(fdr < SIGNIFICANT),
        )  # fmt: skip
        ranked = genes[np.lexsort(keys)]
        counted = np.cumsum(adjudicable[row, ranked])
        shares = np.divide(np.cumsum(right[row, ranked]), counted, out=np.zeros(len(counted)), where=counted > 0)
        depths[row] = counted[shares >= PURITY].max(initial=0)
    return inputs.by_name(_share(depths, wanted))


def significant_jaccard(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """|real ∩ predicted| / |real ∪ predicted| significant genes; 0 to 1, best 1, which is also its value where there are none."""
    real, pred = (inputs.without_own(side.significant(SIGNIFICANT)) for side in (inputs.real_de, inputs.pred_de))
    either = (real | pred).sum(axis=1)
    both = (real & pred).sum(axis=1)
    return inputs.by_name(np.where(either == 0, 1.0, both / np.maximum(either, 1)))


def fold_change_error(_options: Options, inputs: "CountInputs") -> PerPerturbation:
    """Mean |predicted − real| log2 fold change of the real significant genes over the mean |real| one; from 0, best 0.

    Not defined for perturbations with fewer than `FEWEST_GENES` of them. A gene that the prediction does not test has no change.
    """
    return relative_fold_change_error(inputs, inputs.pred_de.log2_fold_change, inputs.real_de.log2_fold_change)


def relative_fold_change_error(inputs: "CountInputs", first: np.ndarray, second: np.ndarray) -> PerPerturbation:
    """As `fold_change_error`, of two sets of fold changes `[P, K]` (NaN: not tested) over the real side's significant genes."""
    counted = inputs.without_own(inputs.real_de.significant(SIGNIFICANT))
    numbers = counted.sum(axis=1)
    difference = np.abs(np.nan_to_num(first) - np.nan_to_num(second))
    size = np.where(counted, np.abs(inputs.real_de.log2_fold_change), 0.0).sum(axis=1)
    error = np.where(counted, difference, 0.0).sum(axis=1)
    usable = (numbers >= FEWEST_GENES) & (size > 0)
    return inputs.by_name(np.divide(error, size, out=np.full(len(error), np.nan), where=usable))


def _directions(inputs: "CountInputs") -> tuple[np.ndarray, np.ndarray]:
    """Where a real change has a direction and the gene is tested on both sides `[P, K]`, and where the prediction's is the same."""
    real, pred = inputs.real_de.log2_fold_change, inputs.pred_de.log2_fold_change
    both = inputs.real_de.present & inputs.pred_de.present
    adjudicable = both & (np.nan_to_num(real) != 0)
    return adjudicable, adjudicable & (np.sign(real) == np.sign(pred))


def _num_compared(inputs: "CountInputs") -> np.ndarray:
    """Genes that a profile is compared over `[P]`: all but the own one."""
    return len(inputs.genes) - (inputs.own_gene >= 0).astype(np.float64)


def _distance(inputs: "CountInputs", first: np.ndarray, second: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Squared distance of profiles `[P, G]` less `noise [P]`, over the genes compared `[P]`."""
    difference = first - second
    total = np.einsum("ij,ij->i", difference, difference) - noise
    rows = np.flatnonzero(inputs.own_gene >= 0)
    total[rows] -= difference[rows, inputs.own_gene[rows]] ** 2
    compared = _num_compared(inputs)
    return np.divide(total, compared, out=np.full(len(total), np.nan), where=compared > 0)


def _share(number: np.ndarray, of: np.ndarray) -> np.ndarray:
    """number / of, NaN where that is 0."""
    return np.divide(number, of, out=np.full(len(of), np.nan), where=of > 0)
