"""Integrity checks that look at effects: shared profiles, spiked targets, boosted low genes, size, control cells."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.stats import chi2

from steval.evaluator.integrity.evidence import SideEvidence
from steval.evaluator.integrity.verdict import Verdict, graded, skipped
from steval.evaluator.metrics.changes import SIGNIFICANT_FDR
from steval.wording import counted

SPREAD_WARN, SPREAD_FAIL = 0.15, 0.03
"""Spread between perturbations as a share of the real one; bad when low."""
DETECTABLE = 1.1
"""Real spread over what sampling noise alone would give, below which effects cannot be told from noise."""
SPIKE_FACTOR = 0.75
"""Times the largest real effect of any gene by which the target's predicted change lies beyond the real one."""
SPIKE_NOISE = 4.0
"""Standard errors of that; what is less may be noise."""
SPIKED_WARN, SPIKED_FAIL = 0.05, 0.25
"""Share of perturbations with a spiked target."""
LOW_QUANTILE = 0.25
LOW_WARN, LOW_FAIL = 1.3, 2.0
"""Times the real expression of weakly expressed genes."""
LOW_SHARE_WARN, LOW_SHARE_FAIL = 0.3, 0.5
"""Share of weak genes among the significant ones, beyond the real share."""
FEWEST_SIGNIFICANT = 20
SIGNIFICANT_WARN, SIGNIFICANT_FAIL = 5.0, 10.0
"""Times as many significant genes as the real data has, beyond a few."""
FEWEST_COUNTED = 5
"""Added to both numbers, which are noise when small."""
QUIET_GENES, FEWEST_QUIET = 2, 3
"""Perturbations with so few real significant genes are looked at by themselves where there are enough of them."""
CONTROL_WARN, CONTROL_FAIL = 1.4, 4.0
"""Times the difference that sampling noise alone would give."""
CONTROL_VARIANCE_WARN, CONTROL_VARIANCE_FAIL = 2.0, 5.0
"""Ratio of the control cells' variances, either way."""
SIZE_LOW, SIZE_HIGH = 0.25, 2.0
"""Predicted effect size over the real one, beyond noise."""
LEAST_TOUCHED = 0.25
"""Share of the genes, those that effects touch least, whose means tell how much sampling noise is in them."""


def check_one_profile(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Spread between perturbations beyond sampling noise, predicted against real."""
    if len(real.perturbations) < 2:
        return skipped("there is one perturbation only")
    between = [between_spread(side) for side in (pred, real)]
    total, noise = between[1]
    if total < DETECTABLE * noise:
        identical = between[0][0] < 0.05 * total
        status = "fail" if identical else "skipped"
        sentence = (
            "All perturbations are predicted to look the same."
            if identical
            else "The real perturbations differ no more than sampling noise, so shared profiles cannot be told."
        )
        return Verdict(status, between[0][0] / total if total > 0 else None, SPREAD_WARN, sentence)
    share = max(between[0][0] - between[0][1], 0.0) / (total - noise)
    status = "fail" if share < SPREAD_FAIL else "warn" if share < SPREAD_WARN else "ok"
    effect = "." if status == "ok" else "; all perturbations get nearly one and the same profile."
    return Verdict(
        status,
        share,
        SPREAD_WARN,
        f"Predicted perturbations differ {share:.2g} × as much as real ones, noise removed{effect}",
    )


def between_spread(side: SideEvidence) -> tuple[float, float]:
    """Variance of means over perturbations, summed over genes, and what sampling noise contributes to it."""
    means = np.stack([side.groups[name].mean for name in side.perturbations]).astype(np.float64)
    noise = np.mean(
        [side.groups[name].variance.astype(np.float64) / side.groups[name].num_cells for name in side.perturbations],
        axis=0,
    )
    scatter = means.var(axis=0, ddof=1)
    freedom = np.full(len(noise), len(means) - 1.0)
    return float(scatter.sum()), float(noise.sum()) * sampled_share(scatter, noise, freedom)


def sampled_share(scatter: np.ndarray, noise: np.ndarray, freedom: np.ndarray) -> float:
    """How much of the sampling variance `noise [G]` is in means whose squared deviations are `scatter [G]`: from 0 to 1.

    `freedom [G]`: of how many independent deviations each of those is the mean square.

    Means of cells drawn one by one scatter by their sampling noise at least, in every gene. Cells that were made to have a
    certain mean (a prediction carried by control cells) have none of it, and the quarter of the genes that effects touch least
    shows that: their means lie closer together than the noise would let them.
    """
    known = noise > 0
    if not known.any():
        return 0.0
    expected = chi2.ppf(LEAST_TOUCHED, freedom[known]) / freedom[known]
    return min(float(np.quantile(scatter[known] / (noise[known] * expected), LEAST_TOUCHED)), 1.0)


def check_target_spike(pred: SideEvidence, real: SideEvidence, genes: Sequence[str]) -> Verdict:
    """The perturbed gene itself pushed far beyond its real change, or far the other way."""
    position = {gene: index for index, gene in enumerate(genes)}
    targets = [(row, position[name]) for row, name in enumerate(real.perturbations) if name in position]
    if not targets:
        return skipped("no perturbation is named after a measured gene")
    predicted, measured = pred.effects(), real.effects()
    noise = np.hypot(_effect_noise(pred), _effect_noise(real))
    beyond = predicted - np.clip(predicted, np.minimum(measured, 0), np.maximum(measured, 0))
    largest = np.abs(measured).max(axis=1)
    ratios = [abs(beyond[row, gene]) / max(largest[row], 1e-12) for row, gene in targets]
    clear = [abs(beyond[row, gene]) > SPIKE_NOISE * noise[row, gene] for row, gene in targets]
    share = float(np.mean([ratio > SPIKE_FACTOR and sure for ratio, sure in zip(ratios, clear, strict=True)]))
    status = graded(share, SPIKED_WARN, SPIKED_FAIL)
    worst = max(ratios)
    effect = (
        "." if status == "ok" else "; the target's own change marks the perturbation instead of predicting its effect."
    )
    return Verdict(
        status,
        share,
        SPIKED_WARN,
        f"In {share:.0%} of {counted(len(targets), 'perturbation')} the target gene's predicted change lies beyond "
        "the real one, or on the "
        f"other side of no change, by more than {SPIKE_FACTOR:g} × the largest real change of any gene (at most "
        f"{worst:.2g} ×){effect}",
    )


def check_low_genes(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Expression of weakly expressed genes in perturbed cells, predicted against real."""
    base = real.groups[real.control].mean.astype(np.float64)
    means = {name: [side.groups[name].mean.astype(np.float64) for side in (pred, real)] for name in real.perturbations}
    pooled = np.mean([measured for _, measured in means.values()], axis=0) + base
    expressed = np.flatnonzero(pooled > 0)
    if not len(expressed):
        return skipped("no gene is expressed")
    low = expressed[pooled[expressed] <= np.quantile(pooled[expressed], LOW_QUANTILE)]
    least = base[low].sum()  # too small an effect leaves weak genes where they were, which boosts nothing
    ratios = np.array([(p[low].sum() + 1e-9) / (max(m[low].sum(), least) + 1e-9) for p, m in means.values()])
    ratio = float(np.quantile(ratios, 0.9))
    status = graded(ratio, LOW_WARN, LOW_FAIL)
    effect = "." if status == "ok" else "; small values on weak genes give large fold changes."
    return Verdict(
        status,
        ratio,
        LOW_WARN,
        f"The weakest quarter of the genes is expressed {ratio:.2g} × as strongly as in real perturbed or control cells (90 % "
        f"quantile of perturbations){effect}",
    )


def check_low_significant(
    de_pred: pl.DataFrame, de_real: pl.DataFrame, real: SideEvidence, genes: Sequence[str]
) -> Verdict:
    """Weakly expressed genes among those called significant, predicted against real."""
    base = real.groups[real.control].mean
    low = {gene for gene, is_low in zip(genes, base <= np.quantile(base, LOW_QUANTILE), strict=True) if is_low}
    shares, numbers = [], []
    for table in (de_pred, de_real):
        significant = table.filter(pl.col("fdr") < SIGNIFICANT_FDR)["feature"].cast(pl.String).to_list()
        numbers.append(len(significant))
        shares.append(sum(gene in low for gene in significant) / max(len(significant), 1))
    if numbers[0] < FEWEST_SIGNIFICANT:
        sentence = (
            f"The prediction calls {counted(numbers[0], 'gene')} significant in all; too few to look for weak genes "
            "among them."
        )
        return Verdict("ok", None, LOW_SHARE_WARN, sentence)
    excess = shares[0] - (shares[1] if numbers[1] >= FEWEST_SIGNIFICANT else LOW_QUANTILE)
    status = graded(excess, LOW_SHARE_WARN, LOW_SHARE_FAIL)
    effect = "." if status == "ok" else "; weak genes give large fold changes that look like effects."
    return Verdict(
        status,
        excess,
        LOW_SHARE_WARN,
        f"{shares[0]:.0%} of the genes significant in the prediction are among the weakest quarter, {shares[1]:.0%} of those "
        f"in the real data{effect}",
    )


def check_significant(real: np.ndarray, pred: np.ndarray) -> Verdict:
    """Numbers of significant genes `[P]`, predicted against real: over all perturbations, and over those that have few."""
    ratios = (pred + FEWEST_COUNTED) / (real + FEWEST_COUNTED)
    quiet = real <= QUIET_GENES
    chosen = np.ones(len(real), dtype=bool)
    if quiet.sum() >= FEWEST_QUIET and np.median(ratios[quiet]) > np.median(ratios):
        chosen = quiet
    ratio = float(np.median(ratios[chosen]))
    status = graded(ratio, SIGNIFICANT_WARN, SIGNIFICANT_FAIL)
    which = (
        "most perturbations"
        if chosen.all()
        else f"the {counted(chosen.sum(), 'perturbation')} with {QUIET_GENES} real ones at most"
    )
    effect = (
        "."
        if status == "ok"
        else "; predicted cells of a perturbation are too alike, so that every small difference is significant."
    )
    return Verdict(
        status,
        ratio,
        SIGNIFICANT_WARN,
        f"In {which}, {np.median(pred[chosen]):g} genes are significant in the prediction and {np.median(real[chosen]):g} in the "
        f"real data (medians){effect}",
    )


def check_controls(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """The control cells of the prediction against the measured ones."""
    ours, theirs = pred.groups[pred.control], real.groups[real.control]
    gap = float(np.abs(ours.mean - theirs.mean).mean())
    variance = theirs.variance.astype(np.float64) * (1 / ours.num_cells + 1 / theirs.num_cells)
    noise = float(np.sqrt(2 / np.pi * variance).mean())
    ratio = gap / noise if noise > 0 else (0.0 if gap == 0 else float("inf"))
    status = graded(ratio, CONTROL_WARN, CONTROL_FAIL)
    if gap < 1e-6:
        sentence = "The prediction's control cells are the measured ones."
    else:
        sentence = (
            f"The prediction's control cells differ from the measured ones by {gap:.3g} per gene, {ratio:.2g} × sampling noise"
            + ("." if status == "ok" else "; every effect is measured from them (--integrity full gives both scores).")
        )
    return Verdict(status, ratio, CONTROL_WARN, sentence)


def check_control_variance(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """How much the control cells of the prediction vary beside the measured ones."""
    ours, theirs = (float(side.groups[side.control].variance.astype(np.float64).sum()) for side in (pred, real))
    if theirs <= 0:
        return skipped("the real control cells do not vary")
    ratio = ours / theirs
    distance = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
    status = graded(distance, CONTROL_VARIANCE_WARN, CONTROL_VARIANCE_FAIL)
    effect = (
        "." if status == "ok" else "; differential expression is tested against them, so their variance sets its power."
    )
    sentence = f"The prediction's control cells vary {ratio:.2g} × as much as the measured ones{effect}"
    return Verdict(status, ratio, CONTROL_VARIANCE_WARN, sentence)


def effect_size(pred: SideEvidence, real: SideEvidence) -> float | None:
    """Size of predicted effects over real ones, sampling noise removed from both; None where real ones are noise."""
    sizes = []
    for side in (pred, real):
        squared = (side.effects().astype(np.float64) ** 2).mean(axis=0)
        noise = (_effect_noise(side) ** 2).mean(axis=0)
        sizes.append((float(squared.sum()), float(noise.sum()) * sampled_share(squared, noise, _effect_freedom(side))))
    (predicted, predicted_noise), (measured, measured_noise) = sizes
    if measured < DETECTABLE * measured_noise:
        return None
    return float(np.sqrt(max(predicted - predicted_noise, 0.0) / (measured - measured_noise)))


def check_effect_size(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """How large predicted effects are beside real ones."""
    ratio = effect_size(pred, real)
    if ratio is None:
        return skipped("the real effects are no larger than sampling noise")
    off = not SIZE_LOW <= ratio <= SIZE_HIGH
    effect = "; their size is off, whatever their direction." if off else "."
    sentence = f"Predicted effects are {ratio:.2g} × as large as real ones, noise removed{effect}"
    return Verdict("warn" if off else "ok", ratio, SIZE_HIGH, sentence)


def _effect_freedom(side: SideEvidence) -> np.ndarray:
    """Independent deviations `[G]` in a gene's mean squared effect: one of the control cells', shared by all, one of each
    perturbation's.

    After Satterthwaite (1946): a mean square with the same mean and variance as the sum of both.
    """
    base = side.groups[side.control]
    shared = base.variance.astype(np.float64) / base.num_cells
    own = np.mean([side.groups[name].variance / side.groups[name].num_cells for name in side.perturbations], axis=0)
    both = shared + own
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = both**2 / (shared**2 + own**2 / len(side.perturbations))
    return np.where(both > 0, freedom, 1.0)


def _effect_noise(side: SideEvidence) -> np.ndarray:
    """Standard error of each effect `[P, G]`."""
    base = side.groups[side.control]
    control = base.variance.astype(np.float64) / base.num_cells
    return np.sqrt(np.stack([side.groups[n].variance / side.groups[n].num_cells + control for n in side.perturbations]))
