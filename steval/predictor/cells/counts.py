"""Integer counts from predicted expression, for competitions that score counts.

A predicted lognorm cell x says which share of its molecules each gene has: p = expm1(x) / Σ expm1(x). Its counts are drawn
multinomially from p with the total of the measured control cell that it started from. That total is read off the control's
own lognorm values: its smallest positive value stands for one molecule (or a few), and all others are then whole numbers.
"""

import numpy as np
import scipy.sparse as sp

from steval.errors import DataError
from steval.predictor.controls import ControlPool
from steval.predictor.sets import PlannedSet

WHOLE = 0.02
"""Largest distance from a whole number, plus the same share of a thousandth of the number (float32 rounding)."""
MOST_MOLECULES = 20
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
