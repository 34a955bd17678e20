"""Integrity checks on counts: untested genes, scatter that cancels, counts injected into single genes."""

import numpy as np

from steval.evaluator.integrity.verdict import Verdict, graded, skipped
from steval.evaluator.measure.count_rules import LEAST_CPM
from steval.evaluator.metrics.count_functions import scatter_ratio
from steval.evaluator.metrics.count_inputs import CountInputs
from steval.wording import counted

LEAST_SEEN = 1.0
"""CPM of the controls from which an untested gene is looked at; below it a few counts make large ratios."""
UNTESTED_WARN, UNTESTED_FAIL = 1.3, 2.0
"""Times the real expression of the untested genes."""
CHANCE = 3.0
"""Standard deviations of a number of counts that may be chance."""
CANCELS_WARN, CANCELS_FAIL = 0.7, 0.3
"""Scatter of profiles over what sampling noise alone gives; honest predictions have about 1 or more."""
INJECTED_WARN, INJECTED_FAIL = 0.03, 0.1
"""Share of a perturbation's counts on genes beyond what these have in real cells."""
FEW_GENES = 10


def check_untested_genes(inputs: CountInputs) -> Verdict:
    """Expression of the genes that the controls express too weakly to be tested, predicted against real."""
    control = per_million(inputs.real.control_sums[None, :])[0]
    low = np.flatnonzero((control > LEAST_SEEN) & (control <= LEAST_CPM))
    if not len(low):
        return skipped(f"no gene has a control mean of {LEAST_SEEN:g} to {LEAST_CPM:g} CPM")
    counts = inputs.pred.sums[:, low].sum(axis=1)
    measured = np.maximum(per_million(inputs.real.sums)[:, low].sum(axis=1), control[low].sum())
    expected = measured * inputs.pred.sums.sum(axis=1) / 1e6
    ratios = _sure(counts) / expected
    ratio = max(float(np.quantile(ratios, 0.9)), float(_sure(counts.sum()) / expected.sum()))
    status = graded(ratio, UNTESTED_WARN, UNTESTED_FAIL)
    effect = "." if status == "ok" else "; such genes are not tested, and raising them thins out all others."
    return Verdict(
        status,
        ratio,
        UNTESTED_WARN,
        f"{counted(len(low), 'gene')} of {LEAST_SEEN:g} to {LEAST_CPM:g} CPM in controls: expressed at least "
        f"{ratio:.2g} × as strongly "
        f"as in real perturbed or control cells, chance aside (all perturbations together, or the 90 % quantile of them){effect}",
    )


def _sure(counts: np.ndarray) -> np.ndarray:
    """What is left of numbers of counts when chance is taken off."""
    return np.maximum(counts - CHANCE * np.sqrt(counts), 0.0)


def check_cancelling_scatter(inputs: CountInputs) -> Verdict:
    """Whether the profiles of perturbations scatter as the scatter of their cells makes samples do."""
    ratio = scatter_ratio(inputs)
    if not np.isfinite(ratio):
        return skipped("the predicted cells of a perturbation do not scatter, so no sampling noise is taken off")
    status = "fail" if ratio < CANCELS_FAIL else "warn" if ratio < CANCELS_WARN else "ok"
    effect = "." if status == "ok" else "; the errors of the cells cancel, which a sample's do not."
    return Verdict(
        status,
        ratio,
        CANCELS_WARN,
        f"Predicted profiles scatter {ratio:.2g} × as much over perturbations as the scatter of their cells makes samples "
        f"do{effect}",
    )


def check_injected_mass(inputs: CountInputs) -> Verdict:
    """Counts on the genes whose share has grown most beyond the real one's and the controls'."""
    control = inputs.real.control_sums / max(inputs.real.control_sums.sum(), 1.0)
    shares = [per_million(table.sums) / 1e6 for table in (inputs.pred, inputs.real)]
    excess = np.maximum(shares[0] - np.maximum(shares[1], control), 0.0)
    few = min(FEW_GENES, excess.shape[1])
    largest = np.partition(excess, -few, axis=1)[:, -few:].sum(axis=1)
    share = float(np.quantile(largest, 0.9))
    status = graded(share, INJECTED_WARN, INJECTED_FAIL)
    effect = (
        "." if status == "ok" else "; counts put on a few genes thin out all others, which then look less expressed."
    )
    return Verdict(
        status,
        share,
        INJECTED_WARN,
        f"{share:.1%} of the predicted counts lie on the {counted(few, 'gene that exceeds', 'genes that exceed')} "
        "real and control cells most (90 % quantile of "
        f"perturbations){effect}",
    )


def per_million(sums: np.ndarray) -> np.ndarray:
    """Gene sums `[P, G]` as counts per million; zero where there are none."""
    totals = sums.sum(axis=1, keepdims=True)
    return np.divide(sums * 1e6, totals, out=np.zeros_like(sums), where=totals > 0)
