"""Integer counts from predicted expression, for competitions that score counts.

A predicted lognorm cell x says which share of its molecules each gene has: p = expm1(x) / Σ expm1(x). Its counts have the total
N of the measured control cell that it started from, which is read off the control's own lognorm values: its smallest positive
value stands for one molecule (or a few), and all others are then whole numbers. By `CountSampling` they are

- `rounded`: N p, each gene rounded up or down with the probability of the rest, the total kept (systematic sampling). A cell that
  carries an effect keeps the counts that were measured where the effect says nothing: no noise is added to what a cell has;
- `multinomial`: N molecules drawn from p. The right choice for a p that is an expectation; a measured cell gets its noise twice.

docs/decisions/007 has what each scores.
"""

from typing import Literal

import numpy as np
import scipy.sparse as sp

from steval.data.compiled import compiled
from steval.errors import DataError
from steval.predictor.controls import ControlPool
from steval.predictor.sets import PlannedSet

CountSampling = Literal["rounded", "multinomial"]
WHOLE = 0.02
"""Largest distance from a whole number, plus the same share of a thousandth of the number (float32 rounding)."""
MOST_MOLECULES = 20
_ROUNDING = 1e-3
"""Error of float32 lognorm values, in molecules, up to some thousand: what is whole but for it stays whole."""
DEPTH_ROWS = 4096


class DepthTable:
    """Total counts of control cells over the predicted genes, read once for each cell that is used."""

    def __init__(self, pool: ControlPool, median_depth: float | None = None):
        self._pool = pool
        self._median_depth = median_depth
        self._totals = np.full(len(pool), np.nan)
        self._medians: dict[str, float] = {}

    def totals(self, rows: np.ndarray) -> np.ndarray:
        """Total counts of the pool's `rows`, float64 whole numbers."""
        wanted = np.unique(rows[np.isnan(self._totals[rows])])
        for start in range(0, len(wanted), DEPTH_ROWS):
            part = wanted[start : start + DEPTH_ROWS]
            counts = restore_counts(self._pool.measured(part), self._pool.name)
            self._totals[part] = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        return self._totals[rows]

    def depths(self, planned: PlannedSet) -> np.ndarray:
        """Whole totals `[n]` that the cells of a set are drawn at: the controls' own, scaled to the median that was asked for."""
        own = self.totals(planned.control_indices)
        target = planned.median_umi or self._median_depth
        if target is None:
            return own
        return np.maximum(np.rint(own * (target / self._median(planned.cell_type))), 1)

    def _median(self, cell_type: str) -> float:
        if cell_type not in self._medians:
            rows = np.flatnonzero(self._pool.cell_types == cell_type)
            self._medians[cell_type] = float(np.median(self.totals(rows)))
        return self._medians[cell_type]


def restore_counts(lognorm: sp.csr_matrix, name: str) -> sp.csr_matrix:
    """The counts `[n, G]` (float32 whole numbers) behind lognorm values; a `DataError` where they are not of that kind.

    In each cell the smallest value stands for the fewest molecules (1 to `MOST_MOLECULES`) that make all others whole.
    """
    linear = np.expm1(lognorm.data.astype(np.float64))
    row = np.repeat(np.arange(lognorm.shape[0]), np.diff(lognorm.indptr))
    smallest = np.full(lognorm.shape[0], np.inf)
    np.minimum.at(smallest, row, np.where(linear > 0, linear, np.inf))
    ratio = linear / smallest[row]
    counts = np.full(len(ratio), np.nan)
    for molecules in range(1, MOST_MOLECULES + 1):
        whole = np.rint(ratio * molecules)
        off = np.abs(ratio * molecules - whole) > WHOLE * (1 + whole / 1000)
        fits = np.bincount(row[off], minlength=lognorm.shape[0]) == 0
        take = np.isnan(counts) & fits[row]
        counts[take] = whole[take]
        if not np.isnan(counts).any():
            return sp.csr_matrix((counts.astype(np.float32), lognorm.indices, lognorm.indptr), shape=lognorm.shape)
    raise DataError(
        f"{name}: the counts behind the lognorm values cannot be read off them (in some cell no number of molecules makes "
        "all values whole), so counts cannot be drawn at their depth. Use controls that `steval prepare` made from raw counts"
    )


def draw_counts(cells: np.ndarray, depths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts `[n, G]` (float32 whole numbers) of lognorm `cells [n, G]`, each row with the total `depths [n]`.

    A cell without any expression gets no counts.
    """
    linear = np.expm1(np.maximum(cells, 0).astype(np.float64))
    totals = linear.sum(axis=1, keepdims=True)
    filled = totals[:, 0] > 0
    counts = np.zeros(cells.shape, dtype=np.float32)
    counts[filled] = rng.multinomial(depths[filled].astype(np.int64), linear[filled] / totals[filled])
    return counts


def round_counts(cells: sp.csr_matrix, depths: np.ndarray, starts: np.ndarray) -> sp.csr_matrix:
    """Counts (float32 whole numbers, no zero stored) of lognorm `cells [n, G]`, each row with the total `depths [n]`.

    `starts [n]`, drawn from [0, 1), decide which genes are rounded up. A cell without any expression gets no counts.
    """
    counts = np.empty(cells.nnz, dtype=np.float32)
    _round(cells.indptr, cells.data, depths.astype(np.float64), starts, counts)
    rounded = sp.csr_matrix((counts, cells.indices, cells.indptr), shape=cells.shape, copy=True)
    rounded.eliminate_zeros()
    return rounded


@compiled
def _round(indptr, values, depths, starts, counts):  # type: ignore[no-untyped-def]
    """Walk along each cell's molecules; where the sum passes a whole number, the gene there gets one more."""
    linear = np.empty(np.max(np.diff(indptr)) if len(indptr) > 1 else 0, dtype=np.float64)
    for row in range(len(depths)):
        begin, size = indptr[row], indptr[row + 1] - indptr[row]
        total = 0.0
        for k in range(size):
            linear[k] = np.expm1(max(np.float64(values[begin + k]), 0.0))
            total += linear[k]
        if total <= 0:
            counts[begin : begin + size] = 0
            continue
        factor = depths[row] / total
        passed, given = starts[row], 0.0
        for k in range(size):
            count = linear[k] * factor
            nearest = np.rint(count)
            passed += nearest if abs(count - nearest) < _ROUNDING else count
            reached = min(np.floor(passed), depths[row]) if k < size - 1 else depths[row]
            counts[begin + k] = reached - given
            given = reached
