"""Integrity checks that look at cells: copies, spread, totals and numbers."""

from collections.abc import Mapping

import numpy as np

from steval.evaluator.cells.digests import nearest_cells, nearest_distances
from steval.evaluator.integrity.evidence import SideEvidence
from steval.evaluator.integrity.verdict import Status, Verdict, graded, skipped
from steval.evaluator.reference.training import TrainingSummary

COPIES_WARN, COPIES_FAIL = 0.01, 0.05
"""Share of predicted cells."""
NEAR_COPY = 0.4
"""Share of the distance between neighbouring real cells below which a cell is a copy with noise."""
TRACED_CELLS = 32
"""Cells of a perturbation whose source is looked for among the control cells."""
MOVED, MOVED_IN_ALL = 0.1, 0.3
"""Standard errors of the real mean under which a perturbation's move from control cells is nothing: for one of them, whose
effect an honest model may have shrunk, and for all together."""
VARIANCE_WARN, VARIANCE_FAIL = 1.75, 3.0
"""Times the real variance."""
COLLAPSE_WARN = 0.02
"""Below this share of the real variance, predicted cells are copies of one profile."""
TAIL = 0.99
SCATTER_WARN, SCATTER_FAIL = 0.15, 0.4
"""Share of predicted cells further from their mean than 99 % of real cells are from theirs."""
SCALE_WARN, SCALE_FAIL = 1.25, 2.0
"""Ratio of median cell totals, either way."""
TOTAL_SPREAD_WARN, TOTAL_SPREAD_FAIL = 0.08, 0.15
"""Relative spread of perturbations' mean totals, beyond the real one's."""
NUMBERS_CHANGED = 0.1
"""Relative spread of predicted to real cell numbers that counts as a choice."""
LEAK_P = 0.01
LEAK_CERTAIN = 0.9
"""Rank correlation that chance and differing power do not bring about."""
PERMUTATIONS = 20_000
FEWEST_FOR_RANKS = 5


def check_real_copies(pred: SideEvidence, real: SideEvidence, typical: float) -> Verdict:
    """Predicted cells that are evaluated cells, exactly or with small noise; `typical` is the `neighbour_distance`."""
    exact = float(np.isin(pred.gather("digests"), real.gather("digests")).mean())
    near = _near_copies(pred, {name: real.groups[name].sketch for name in real.perturbations}, typical)
    return _copies(max(exact, near), "evaluated real cells", "the answers are in the prediction")


def check_training_copies(pred: SideEvidence, training: TrainingSummary, typical: float) -> Verdict:
    """Predicted cells that are training cells, exactly or with small noise."""
    exact = float(np.isin(pred.gather("digests"), training.digests).mean())
    near = _near_copies(pred, training.sketches, typical)
    return _copies(max(exact, near), "perturbed training cells", "it repeats training data and predicts nothing")


def check_shared_cells(real: SideEvidence, training: TrainingSummary) -> Verdict:
    """Evaluated cells that are also training cells."""
    share = float(np.isin(real.gather("digests"), training.digests).mean())
    return Verdict(
        graded(share, COPIES_WARN / 10, COPIES_FAIL),
        share,
        COPIES_WARN / 10,
        f"{share:.1%} of the evaluated perturbed cells are also among the training cells"
        + ("; baselines and the model have seen the answers." if share >= COPIES_WARN / 10 else "."),
    )


def check_pasted_controls(
    pred: SideEvidence, real: SideEvidence, training: TrainingSummary | None, typical: float
) -> Verdict:
    """Perturbed cells that are control cells, unchanged or moved by next to nothing; `typical`: see `check_real_copies`.

    Control cells that carry an effect are an honest prediction, and as near to their sources. What tells them apart is the
    mean move from the sources, which noise added to a pasted cell leaves where it was.
    """
    digests = [pred.groups[pred.control].digests, real.groups[real.control].digests]
    sketches = [pred.groups[pred.control].sketch, real.groups[real.control].sketch]
    if training is not None:
        digests.append(training.control_digests)
        sketches.append(training.control_sketches)
    exact = float(np.isin(pred.gather("digests"), np.concatenate(digests)).mean())
    share = max(exact, _hardly_moved(pred, real, np.unique(np.concatenate(sketches), axis=0), typical))
    status = graded(share, COPIES_WARN, COPIES_FAIL)
    effect = "." if status == "ok" else ", or moved by next to nothing; no effect is predicted for them."
    return Verdict(
        status,
        share,
        COPIES_WARN,
        f"{share:.1%} of the predicted perturbed cells are unchanged control cells{effect}",
    )


def _hardly_moved(pred: SideEvidence, real: SideEvidence, controls: np.ndarray, typical: float) -> float:
    """Share of (some) predicted cells that lie near a control cell, in perturbations that are moved by next to nothing.

    A perturbation's move is the mean over such cells, in standard errors of the real cells' mean over the sketch genes.
    """
    near, moves = [], []
    for name in pred.perturbations:
        cells, measured = pred.groups[name].sketch, real.groups[name]
        cells = cells[np.unique(np.linspace(0, len(cells) - 1, TRACED_CELLS).round().astype(int))]
        rows, distances = nearest_cells(cells, controls)
        is_near = distances < NEAR_COPY * typical
        noise = np.sqrt(measured.variance[pred.sketched].astype(np.float64).mean() / measured.num_cells)
        move = (cells[is_near].astype(np.float64) - controls[rows[is_near]]).mean(axis=0) if is_near.any() else np.inf
        near.append(is_near.mean())
        moves.append(float(np.sqrt(np.mean(move**2))) / noise if noise > 0 else np.inf)
    shares, sizes = np.array(near), np.array(moves)
    some = shares > 0
    if some.any() and np.sqrt(np.average(sizes[some] ** 2, weights=shares[some])) < MOVED_IN_ALL:
        return float(shares.mean())
    return float((shares * (sizes < MOVED)).mean())


def check_variance(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Variance over cells within a perturbation, predicted against real."""
    predicted = sum(
        group.variance.astype(np.float64).sum() for name, group in pred.groups.items() if name != pred.control
    )
    measured = sum(
        group.variance.astype(np.float64).sum() for name, group in real.groups.items() if name != real.control
    )
    if measured <= 0:
        return skipped("the real cells of a perturbation do not vary")
    ratio = float(predicted / measured)
    if ratio < COLLAPSE_WARN:
        return Verdict(
            "warn",
            ratio,
            COLLAPSE_WARN,
            f"Predicted cells of a perturbation hardly differ ({ratio:.2g} of the real variance): every difference from control "
            "looks significant, and metrics on differential expression mean little.",
        )
    status = graded(ratio, VARIANCE_WARN, VARIANCE_FAIL)
    effect = "." if status == "ok" else "; inflated variance thins out significant genes where that pays."
    return Verdict(
        status,
        ratio,
        VARIANCE_WARN,
        f"Predicted cells vary {ratio:.2g} × as much as real ones{effect}",
    )


def check_scatter(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Cells far from their mean whose errors cancel in it."""
    limits = {name: np.quantile(real.groups[name].spread, TAIL) for name in real.perturbations}
    outside = np.concatenate([pred.groups[name].spread > limit for name, limit in limits.items()])
    share = float(outside.mean())
    status = graded(share, SCATTER_WARN, SCATTER_FAIL)
    effect = "." if status == "ok" else "; their errors cancel in the mean, so the mean hides them."
    return Verdict(
        status,
        share,
        SCATTER_WARN,
        f"{share:.1%} of the predicted cells lie further from their perturbation's mean than {TAIL:.0%} of real cells do{effect}",
    )


def check_scale(pred: SideEvidence, real: SideEvidence, on_counts: bool) -> Verdict:
    """Total expression of a cell, or its number of counts, predicted against real."""
    medians = [np.median(side.gather("totals")) for side in (pred, real)]
    ratio = float(medians[0] / medians[1]) if medians[1] > 0 else float("inf")
    distance = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
    status = graded(distance, SCALE_WARN, SCALE_FAIL)
    what = "number of counts" if on_counts else "total expression"
    why = (
        "predicted cells have another depth"
        if on_counts
        else "the two files were not normalised alike (target_sum, or counts)"
    )
    effect = "." if status == "ok" else f"; {why}."
    return Verdict(status, ratio, SCALE_WARN, f"A predicted cell's {what} is {ratio:.3g} × a real cell's{effect}")


def check_totals_leak(pred: SideEvidence, real: SideEvidence) -> Verdict:
    """Do the cells' totals differ between perturbations where real ones do not?"""
    spreads = []
    for side in (pred, real):
        means = np.array([side.groups[name].totals.mean() for name in side.perturbations])
        noise = np.array([side.groups[name].totals.var() / side.groups[name].num_cells for name in side.perturbations])
        spreads.append(np.sqrt(max(means.var() - noise.mean(), 0.0)) / max(means.mean(), 1e-12))
    excess = float(spreads[0] - spreads[1])
    status = graded(excess, TOTAL_SPREAD_WARN, TOTAL_SPREAD_FAIL)
    effect = "." if status == "ok" else "; totals that differ so may carry the strength of an effect into the metrics."
    return Verdict(
        status,
        excess,
        TOTAL_SPREAD_WARN,
        f"Mean totals differ by {spreads[0]:.1%} between predicted perturbations, by {spreads[1]:.1%} between real ones{effect}",
    )


def check_numbers_leak(pred: SideEvidence, real: SideEvidence, num_significant: np.ndarray, seed: int) -> Verdict:
    """Do predicted cell numbers follow the number of significant genes?

    `num_significant`: of the real data, one for each perturbation in sorted order.
    """
    names = real.perturbations
    numbers = [np.array([side.groups[name].num_cells for name in names], dtype=float) for side in (pred, real)]
    changed = round(float(np.std(np.log(numbers[0] / numbers[1]))), 9)
    if changed < NUMBERS_CHANGED or len(names) < FEWEST_FOR_RANKS:
        why = "too few to compare" if len(names) < FEWEST_FOR_RANKS else "in proportion to the real ones"
        sentence = f"Predicted cell numbers are {why} ({changed:.1%} spread of their ratio)."
        return Verdict("ok", changed, NUMBERS_CHANGED, sentence)
    correlation, chance = _rank_test(numbers[0] / numbers[1], num_significant, seed)
    leaks = chance < LEAK_P
    sentence = (
        f"Predicted cell numbers are not in proportion to the real ones and correlate by {correlation:.2f} with the number of "
        f"significant genes (p = {chance:.2g})" + ("; cell numbers set the power of the test." if leaks else ".")
    )
    status: Status = "ok" if not leaks else "fail" if abs(correlation) >= LEAK_CERTAIN else "warn"
    return Verdict(status, correlation, None, sentence)


def _rank_test(values: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Spearman correlation and its two-sided permutation p-value."""
    first, second = _centred_ranks(values), _centred_ranks(counts)
    scale = np.sqrt((first @ first) * (second @ second))
    if scale == 0:
        return 0.0, 1.0
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1) @ first
    observed = float(first @ second)
    beyond = int((np.abs(shuffled) >= abs(observed) - 1e-9).sum())
    return observed / scale, (beyond + 1) / (PERMUTATIONS + 1)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks - ranks.mean()


def neighbour_distance(real: SideEvidence) -> float:
    """Typical distance of a real cell to the nearest other one of its perturbation, by sketch."""
    sketches = [real.groups[name].sketch for name in real.perturbations]
    nearest = [nearest_distances(cells, cells, same=True) for cells in sketches if len(cells) > 1]
    return float(np.median(np.concatenate(nearest))) if nearest else 0.0


def _near_copies(pred: SideEvidence, sources: Mapping[str, np.ndarray], typical: float) -> float:
    """Share of predicted cells that lie far closer to a source cell of their perturbation than real cells to each other."""
    near = [
        nearest_distances(pred.groups[name].sketch, sources[name]) < NEAR_COPY * typical
        for name in pred.perturbations
        if name in sources
    ]
    return float(np.concatenate(near).mean()) if near else 0.0


def _copies(share: float, source: str, why: str) -> Verdict:
    status = graded(share, COPIES_WARN, COPIES_FAIL)
    effect = "." if status == "ok" else f", exact or with little noise; {why}."
    return Verdict(
        status,
        share,
        COPIES_WARN,
        f"{share:.1%} of the predicted perturbed cells are copies of {source}{effect}",
    )
