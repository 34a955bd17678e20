"""Integrity checks on the score itself: errors hidden by clipping; under the full level, what another prediction would score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp

from steval.data.cells.scale import LARGEST_LOGNORM
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import PIECE_CELLS, CellSide
from steval.evaluator.integrity.evidence import SideEvidence
from steval.evaluator.integrity.findings import Finding, skipped
from steval.evaluator.reference.members import Overall

LARGEST_KEPT = LARGEST_LOGNORM - 1e-3
"""Scaled effects stay within what can be lognorm."""
HIDDEN_FACTOR = 1.5
"""Times the error that sampling noise alone would give."""
IMPOSSIBLE_WARN, IMPOSSIBLE_FAIL = 0.8, 0.6
"""Times the error that the sampling of the real cells gives a perfect prediction."""
GAIN_WARN = 0.02
"""Overall score (×1) gained by the change."""
SCALE_GAIN_WARN = 0.05
SIZE_TOO_SMALL, SIZE_TOO_LARGE = 0.7, 1.4
SIZE_FAR_TOO_SMALL, SIZE_FAR_TOO_LARGE = 0.5, 2.0
"""Effect sizes over the real ones; honest models shrink effects, so a little too small is for calibration, no flag."""
Rescore = Callable[[Pair], Overall]


@dataclass(frozen=True)
class ChangedSide(CellSide):
    """A predicted side whose cells are changed as they are read."""

    change: Callable[[str, sp.csr_matrix], sp.csr_matrix] = field(
        default=lambda _, cells: cells, repr=False, compare=False
    )

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The changed cells, at most `size` at a time."""
        for piece in super().pieces(group, size):
            yield self.change(group, piece)


def changed_pair(pair: Pair, change: Callable[[str, sp.csr_matrix], sp.csr_matrix]) -> Pair:
    """`pair` with `change(group, cells)` applied to the predicted cells."""
    side = pair.pred
    return replace(
        pair,
        pred=ChangedSide(side.name, side.cells, side.groups, side.alignment, side.dense, side.subset, change=change),
    )


def check_hidden_error(pred: SideEvidence, real: SideEvidence, mean_profile: np.ndarray | None) -> Finding:
    """Mean absolute error worse than the baseline's, which the score counts as 0: a flag where noise does not explain it."""
    check = "error hidden by clipping"
    if mean_profile is None:
        return skipped(check, "no training cells were given, so there is no baseline")
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
        return Finding(check, "ok", unclipped, 0.0, f"{sentence}; nothing is clipped.")
    sentence += f": the member is {unclipped:.2f}, which the score hides by counting 0"
    if error > HIDDEN_FACTOR * floor:
        return Finding(
            check, "warn", unclipped, 0.0, f"{sentence}. Sampling noise explains an error of {floor:.3g} only."
        )
    reason = f"Sampling noise of so few cells alone gives {floor:.3g}, so a true prediction can look like this"
    return Finding(check, "note", unclipped, 0.0, f"{sentence}. {reason}; more cells would tell.")


def check_impossible_error(pred: SideEvidence, real: SideEvidence) -> Finding:
    """Error below the sampling noise of the real cells themselves, which no prediction can know."""
    ratios = []
    for name in real.perturbations:
        ours, theirs = pred.groups[name], real.groups[name]
        noise = np.sqrt(2 / np.pi * theirs.variance.astype(np.float64) / theirs.num_cells).mean()
        ratios.append(np.abs(ours.mean - theirs.mean).mean() / noise if noise > 0 else np.inf)
    ratio = float(np.median(ratios))
    status = "fail" if ratio < IMPOSSIBLE_FAIL else "warn" if ratio < IMPOSSIBLE_WARN else "ok"
    effect = "." if status == "ok" else "; only knowledge of these very cells explains it."
    return Finding(
        "error below noise",
        status,
        ratio,
        IMPOSSIBLE_WARN,
        f"The mean absolute error is {ratio:.2g} × what the sampling of the real cells alone gives a perfect prediction{effect}",
    )


def check_control_gain(pair: Pair, overall: Overall, same: bool, rescore: Rescore) -> Finding:
    """The score with measured controls in the place of the prediction's own, unless they are the `same`."""
    check = "score by predicted controls"
    if same:
        return Finding(
            check, "ok", 0.0, GAIN_WARN, "The prediction's control cells are the measured ones, so nothing changes."
        )
    groups = {**pair.pred.groups, pair.control: pair.real.groups[pair.control]}
    side = MeasuredControls(
        pair.pred.name,
        pair.pred.cells,
        groups,
        pair.pred.alignment,
        pair.pred.dense,
        control=pair.control,
        real=pair.real,
    )
    measured = rescore(replace(pair, pred=side))
    gain = overall.clipped - measured.clipped
    status = "fail" if gain > GAIN_WARN else "ok"
    effect = "; the score comes in part from the controls." if status == "fail" else "."
    return Finding(
        check,
        status,
        gain,
        GAIN_WARN,
        f"The overall score is {overall.clipped:.3f} with the prediction's own controls and {measured.clipped:.3f} with the "
        f"measured ones{effect}",
    )


@dataclass(frozen=True)
class MeasuredControls(CellSide):
    """A predicted side with the measured control cells."""

    control: str = ""
    real: CellSide | None = None

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """Control cells come from the real side, all others from the prediction."""
        if group == self.control and self.real is not None:
            return self.real.pieces(group, size)
        return super().pieces(group, size)


def check_scaling(
    pair: Pair, pred: SideEvidence, overall: Overall, size: float | None, factor: float, rescore: Rescore
) -> Finding:
    """The score with all predicted effects multiplied by `factor`."""
    check = f"effects × {factor:g}"
    base = pred.groups[pred.control].mean.astype(np.float64)
    shifts = {name: (factor - 1) * (pred.groups[name].mean - base) for name in pred.perturbations}

    def change(group: str, cells: sp.csr_matrix) -> sp.csr_matrix:
        if group == pair.control:
            return cells
        dense = cells.toarray()
        dense += shifts[group].astype(dense.dtype)
        np.clip(dense, 0.0, LARGEST_KEPT, out=dense)
        return sp.csr_matrix(dense)

    scaled = rescore(changed_pair(pair, change))
    gain = scaled.clipped - overall.clipped
    sentence = (
        f"With all effects × {factor:g} the overall score is {scaled.clipped:.3f} instead of {overall.clipped:.3f}"
    )
    if gain <= SCALE_GAIN_WARN:
        return Finding(check, "ok", gain, SCALE_GAIN_WARN, f"{sentence}.")
    if factor < 1 and (size is None or size <= SIZE_TOO_LARGE):
        reason = "smaller effects carry less noise, their size itself agrees with the real one"
        return Finding(check, "ok", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
    if size is not None and (
        SIZE_FAR_TOO_SMALL <= size < SIZE_TOO_SMALL or SIZE_TOO_LARGE < size <= SIZE_FAR_TOO_LARGE
    ):
        reason = f"predicted effects are {size:.2g} × as large as real ones, so their size wants calibration"
        return Finding(check, "note", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
    reason = "scaling alone raises the score, so it does not measure the effects' size"
    return Finding(check, "warn", gain, SCALE_GAIN_WARN, f"{sentence}; {reason}.")
