"""Integrity checks on the score itself: errors hidden by clipping; under the full level, what another prediction would score."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from steval.data.cells.scale import LARGEST_LOGNORM
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import PIECE_CELLS, Cells
from steval.evaluator.cells.views import MeasuredControls
from steval.evaluator.integrity.evidence import SideEvidence
from steval.evaluator.integrity.verdict import Verdict, skipped
from steval.evaluator.reference.members import Overall

if TYPE_CHECKING:
    from steval.evaluator.metrics.count_inputs import CountInputs

LARGEST_KEPT = LARGEST_LOGNORM - 1e-3
"""Scaled effects stay within what can be lognorm."""
HIDDEN_FACTOR = 1.5
"""Times the error that sampling noise alone would give."""
IMPOSSIBLE_WARN, IMPOSSIBLE_FAIL = 0.8, 0.6
"""Times the error that the sampling of the real cells gives a perfect prediction."""
LEAST_SHARE = 0.05
"""Added to profiles of 50,000 before fold changes are taken to a power."""
GAIN_WARN = 0.02
"""Overall score (×1) gained by the change."""
SCALE_GAIN_WARN = 0.05
SIZE_TOO_SMALL, SIZE_TOO_LARGE = 0.7, 1.4
SIZE_FAR_TOO_SMALL, SIZE_FAR_TOO_LARGE = 0.5, 2.0
"""Effect sizes over the real ones; honest models shrink effects, so a little too small is for calibration, no flag."""
NO_OVERALL = "no training cells were given, so there is no overall score to compare"
Rescore = Callable[[Pair], Overall]


Change = Callable[[str, sp.csr_matrix], sp.csr_matrix]


class ChangedCells:
    """Predicted cells that are changed as they are read (see `Cells`): `change(group, cells)`."""

    is_read_twice = False

    def __init__(self, cells: Cells, change: Change):
        self._cells = cells
        self._change = change
        self.name, self.groups = cells.name, cells.groups
        self.num_genes, self.dense = cells.num_genes, cells.dense
        self.tables: dict[Any, Any] = {}

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The changed cells, at most `size` at a time."""
        for piece in self._cells.pieces(group, size):
            yield self._change(group, piece)

    def embedding(self, key: str, group: str) -> np.ndarray:
        """As predicted: expression alone is changed."""
        return self._cells.embedding(key, group)


def check_hidden_error(pred: SideEvidence, real: SideEvidence, mean_profile: np.ndarray | None) -> Verdict:
    """Mean absolute error worse than the baseline's, which the score counts as 0: a flag where noise does not explain it."""
    if mean_profile is None:
        return skipped("no training cells were given, so there is no baseline")
    errors, baseline, noise = [], [], []
    for name in real.perturbations:
        ours, theirs = pred.groups[name], real.groups[name]
        errors.append(np.abs(ours.mean - theirs.mean).mean())
        baseline.append(np.abs(mean_profile - theirs.mean).mean())
        variance = sum(side.variance.astype(np.float64) / side.num_cells for side in (ours, theirs))
        noise.append(np.sqrt(2 / np.pi * variance).mean())
    error, base, floor = float(np.mean(errors)), float(np.mean(baseline)), float(np.mean(noise))
    unclipped = 1 - error / base if base > 0 else float("-inf")
    sentence = f"The mean absolute error is {error:.3g}, the mean baseline's {base:.3g}"
    if error <= base:
        return Verdict("ok", unclipped, 0.0, f"{sentence}; nothing is clipped.")
    sentence += f": the member is {unclipped:.2f}, which the score hides by counting 0"
    if error > HIDDEN_FACTOR * floor:
        return Verdict("warn", unclipped, 0.0, f"{sentence}. Sampling noise explains an error of {floor:.3g} only.")
    reason = f"Sampling noise of so few cells alone gives {floor:.3g}, so a true prediction can look like this"
    return Verdict("note", unclipped, 0.0, f"{sentence}. {reason}; more cells would tell.")


def check_impossible_error(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Error below the sampling noise of the real cells themselves, which no prediction can know."""
    ratios = []
    for name in real.perturbations:
        ours, theirs = pred.groups[name], real.groups[name]
        noise = np.sqrt(2 / np.pi * theirs.variance.astype(np.float64) / theirs.num_cells).mean()
        ratios.append(np.abs(ours.mean - theirs.mean).mean() / noise if noise > 0 else np.inf)
    ratio = float(np.median(ratios))
    status = "fail" if ratio < IMPOSSIBLE_FAIL else "warn" if ratio < IMPOSSIBLE_WARN else "ok"
    effect = "." if status == "ok" else "; only knowledge of these very cells explains it."
    return Verdict(
        status,
        ratio,
        IMPOSSIBLE_WARN,
        f"The mean absolute error is {ratio:.2g} × what the sampling of the real cells alone gives a perfect prediction{effect}",
    )


def check_control_gain(pair: Pair, overall: Overall, same: bool, rescore: Rescore) -> Verdict:
    """The score with measured controls in the place of the prediction's own, unless they are the `same`."""
    if same:
        return Verdict(
            "ok", 0.0, GAIN_WARN, "The prediction's control cells are the measured ones, so nothing changes."
        )
    side = MeasuredControls(pair.pred, pair.real, pair.control)
    measured = rescore(replace(pair, pred=side))
    gain = overall.clipped - measured.clipped
    status = "fail" if gain > GAIN_WARN else "ok"
    effect = "; the score comes in part from the controls." if status == "fail" else "."
    return Verdict(
        status,
        gain,
        GAIN_WARN,
        f"The overall score is {overall.clipped:.3f} with the prediction's own controls and {measured.clipped:.3f} with the "
        f"measured ones{effect}",
    )


def scaled_effects(pair: Pair, pred: SideEvidence, factor: float) -> Change:
    """A change of lognorm cells that multiplies all predicted effects by `factor`."""
    base = pred.groups[pred.control].mean.astype(np.float64)
    shifts = {name: (factor - 1) * (pred.groups[name].mean - base) for name in pred.perturbations}

    def change(group: str, cells: sp.csr_matrix) -> sp.csr_matrix:
        if group == pair.control:
            return cells
        dense = cells.toarray()
        dense += shifts[group].astype(dense.dtype)
        np.clip(dense, 0.0, LARGEST_KEPT, out=dense)
        return sp.csr_matrix(dense)

    return change


def scaled_fold_changes(inputs: "CountInputs", factor: float, seed: int) -> Change:
    """A change of counts that takes all predicted fold changes to the power of `factor`; whole numbers by chance."""
    shares = (inputs.pred_profiles, inputs.pred_control[None, :])
    effects, base = (np.expm1(profile) + LEAST_SHARE for profile in shares)
    powers = dict(zip(inputs.perturbations, (effects / base) ** (factor - 1.0), strict=True))
    generators = {name: np.random.default_rng([seed, row]) for row, name in enumerate(inputs.perturbations)}

    def change(group: str, cells: sp.csr_matrix) -> sp.csr_matrix:
        wanted = cells.data * powers[group][cells.indices]
        whole = np.floor(wanted + generators[group].random(len(wanted))).astype(cells.dtype)
        return sp.csr_matrix((whole, cells.indices, cells.indptr), shape=cells.shape)

    return change


def check_scaling(
    pair: Pair, change: Change, overall: Overall, size: float | None, factor: float, rescore: Rescore
) -> Verdict:
    """The score with all predicted effects multiplied by `factor`, which is what `change` does."""
    scaled = rescore(replace(pair, pred=ChangedCells(pair.pred, change)))
    gain = scaled.clipped - overall.clipped
    sentence = (
        f"With all effects × {factor:g} the overall score is {scaled.clipped:.3f} instead of {overall.clipped:.3f}"
    )
    if gain <= SCALE_GAIN_WARN:
        return Verdict("ok", gain, SCALE_GAIN_WARN, f"{sentence}.")
    if factor < 1 and (size is None or size <= SIZE_TOO_LARGE):
        reason = "smaller effects carry less noise, their size itself agrees with the real one"
        return Verdict("ok", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
    if size is not None and (
        SIZE_FAR_TOO_SMALL <= size < SIZE_TOO_SMALL or SIZE_TOO_LARGE < size <= SIZE_FAR_TOO_LARGE
    ):
        reason = f"predicted effects are {size:.2g} × as large as real ones, so their size wants calibration"
        return Verdict("note", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
    reason = "scaling alone raises the score, so it does not measure the effects' size"
    return Verdict("warn", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
