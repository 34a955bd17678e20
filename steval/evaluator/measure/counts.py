"""Cells of counts, perturbation by perturbation: gene sums, mean counts per million (CPM), sampling corrections and sorted keys.

Follows cell-eval2 0.20.0 (MIT licence, Arc Research Institute) under its preset `vcc2026`: a cell's counts are compared as
log1p of CPM in float64, a perturbation's profile is log1p of its gene sums brought to a total of 50,000.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import scipy.sparse as sp

from steval.errors import EvaluationError
from steval.evaluator.cells.sides import Cells
from steval.evaluator.measure.count_kernels import (
    CODE_BITS,
    add_counts,
    add_halves,
    check_counts,
    per_million,
    place_keys,
)
from steval.evaluator.measure.count_rules import BULK_TARGET, LARGEST_TOTAL
from steval.evaluator.measure.groups import STREAMED_CELLS, locked
from steval.evaluator.measure.jackknife import Correction


@dataclass(frozen=True)
class Halves:
    """Splits of cells into two halves: which half, if any, each cell of each group is in, by split."""

    of_cells: Mapping[str, np.ndarray]
    """Group → int8 `[n, splits]`: 0 or 1, -1 for neither."""
    num_splits: int

    @property
    def num_halves(self) -> int:
        """Halves of all splits: those of split s are 2s and 2s + 1."""
        return 2 * self.num_splits

    def numbered(self, group: str) -> np.ndarray:
        """The halves of each cell by number, `[n, splits]`; -1 for none."""
        halves = self.of_cells[group].astype(np.int64)
        return np.where(halves < 0, -1, halves + 2 * np.arange(self.num_splits))

    def codes(self, group: str) -> np.ndarray:
        """Each cell's place in all splits as one number, uint8 `[n]`."""
        return ((self.of_cells[group] + 1) * 3 ** np.arange(self.num_splits)).sum(axis=1).astype(np.uint8)

    @property
    def members(self) -> np.ndarray:
        """Whether cells of a code are in a half: int32 `[3^splits, halves]`."""
        codes = np.arange(3**self.num_splits)
        digits = codes[:, None] // 3 ** np.arange(self.num_splits) % 3
        table = np.zeros((len(codes), self.num_halves), dtype=np.int32)
        table[:, 0::2], table[:, 1::2] = digits == 1, digits == 2
        return table


@dataclass(frozen=True)
class Sums:
    """What one reading of a group's cells adds up to."""

    totals: np.ndarray
    """Counts of each cell `[n]`."""
    numbers: np.ndarray
    """Cells with counts of each gene `[G]`."""
    counts: np.ndarray
    """Counts of each gene `[G]` float64."""
    cpm: np.ndarray
    """Mean CPM of each gene `[G]`."""
    half_cells: np.ndarray
    """Cells of each half `[H]`; no halves where there are no splits."""
    half_counts: np.ndarray
    """`[G, H]` float64."""
    half_cpm: np.ndarray
    """`[G, H]`."""

    @property
    def num_cells(self) -> int:
        return len(self.totals)


class CountedGroup:
    """The cells of one group, readable again and again; `whole`: their counts must be whole numbers."""

    def __init__(self, side: Cells, name: str, lock: Lock, halves: Halves | None = None, whole: bool = True):
        self.name = name
        self.num_cells = len(side.groups[name])
        self._side, self._whole = side, whole
        self._halves = halves
        self._read: Callable[[], Iterable[sp.csr_matrix]]
        if side.is_read_twice and self.num_cells > STREAMED_CELLS:
            self._read = lambda: locked(side.pieces(name), lock)
        else:
            with lock:
                pieces = list(side.pieces(name))
            self._read = lambda: pieces

    def sums(self) -> Sums:
        """Add up all cells; counts that cannot be are an `EvaluationError`."""
        num_genes = self._side.num_genes
        numbers, counts, cpm = np.zeros(num_genes, dtype=np.int64), np.zeros(num_genes), np.zeros(num_genes)
        numbered = self._numbered()
        half_cells = np.array([(numbered == half).sum() for half in range(self._num_halves)], dtype=np.int64)
        half_counts, half_cpm = (np.zeros((num_genes, self._num_halves)) for _ in range(2))
        factors = 1.0 / np.maximum(half_cells, 1)
        totals = np.empty(self.num_cells)
        start = 0
        for piece in self._read():
            chunk = slice(start, start + piece.shape[0])
            start = chunk.stop
            self._check(piece, totals[chunk])
            scaled = _cpm(piece, totals[chunk])
            cells = (piece.indptr, piece.indices, piece.data, scaled)
            add_counts(*cells, 1.0 / self.num_cells, numbers, counts, cpm)
            if self._num_halves:
                add_halves(*cells, numbered[chunk], factors, half_counts, half_cpm)
        return Sums(totals, numbers, counts, cpm, half_cells, half_counts, half_cpm)

    def correct(self, sums: Sums) -> tuple[float, np.ndarray]:
        """Sampling correction of the group, and of each half `[H]`."""
        numbered = self._numbered()
        all_cells = np.arange(self.num_cells)
        members = [all_cells, *(np.flatnonzero((numbered == half).any(axis=1)) for half in range(self._num_halves))]
        gene_sums = [sums.counts, *sums.half_counts.T]
        corrections = [
            Correction(genes, sums.totals[cells], BULK_TARGET) for genes, cells in zip(gene_sums, members, strict=True)
        ]
        start = 0
        for piece in self._read():
            stop = start + piece.shape[0]
            for correction, cells in zip(corrections, members, strict=True):
                first, last = np.searchsorted(cells, [start, stop])
                correction.add(piece, cells[first:last] - start, np.arange(first, last))
            start = stop
        values = np.array([correction.value() for correction in corrections])
        return float(values[0]), values[1:]

    def keys(self, sums: Sums, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gene-major keys of the genes that `column [G]` gives a place, and where each begins `[K + 1]`.

        With splits, the low bits of a key are its cell's code.
        """
        ranked = np.flatnonzero(column >= 0)
        numbers = np.zeros(len(ranked), dtype=np.int64)
        numbers[column[ranked]] = sums.numbers[ranked]
        starts = np.concatenate([[0], np.cumsum(numbers)])
        keys = np.empty(starts[-1], dtype=np.int64)
        next_place = starts[:-1].copy()
        codes = np.zeros(self.num_cells, dtype=np.uint8) if self._halves is None else self._halves.codes(self.name)
        shift, start = 0 if self._halves is None else CODE_BITS, 0
        for piece in self._read():
            chunk = slice(start, start + piece.shape[0])
            start = chunk.stop
            scaled = _cpm(piece, sums.totals[chunk])
            logs = np.log1p(scaled, out=scaled).view(np.int64)
            place_keys(piece.indptr, piece.indices, piece.data, logs, codes[chunk], shift, column, next_place, keys)
        return keys, starts

    @property
    def _num_halves(self) -> int:
        return 0 if self._halves is None else self._halves.num_halves

    def _numbered(self) -> np.ndarray:
        return np.empty((self.num_cells, 0), np.int64) if self._halves is None else self._halves.numbered(self.name)

    def _check(self, piece: sp.csr_matrix, totals: np.ndarray) -> None:
        finite, whole, smallest = check_counts(piece.indptr, piece.data, totals)
        of = f"the {self._side.name} cells of {self.name}"
        if not finite:
            raise EvaluationError(f"{of} hold NaN or infinite values; counts are whole numbers from 0")
        if smallest < 0 or (self._whole and not whole):
            found = f"negative values (down to {smallest:g})" if smallest < 0 else "fractions"
            raise EvaluationError(f"{of} hold {found}; counts are whole numbers from 0. Give the counts as measured")
        if totals.size and totals.max() > LARGEST_TOTAL:
            raise EvaluationError(
                f"{of} hold a cell of {totals.max():.10g} counts; a cell has {LARGEST_TOTAL:,.0f} at most"
            )


def _cpm(piece: sp.csr_matrix, totals: np.ndarray) -> np.ndarray:
    scaled = np.empty(piece.data.shape[0])
    per_million(piece.indptr, piece.data, totals, scaled)
    return scaled


def bulk_profiles(sums: np.ndarray) -> np.ndarray:
    """log1p of gene sums `[P, G]` brought to a total of `BULK_TARGET`; zero where there are no counts."""
    totals = sums.sum(axis=1, keepdims=True)
    scale = np.divide(BULK_TARGET, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.log1p(sums * scale)
