"""Cells that have a wanted mean: measured control cells whose expressing cells bear the change. Decoding, and baselines.

A shift of all cells would make every gene significant and leave the scale; here a gene's values are multiplied by one
factor, so that zeros stay zeros, the order of the cells stays and the mean is exact. Zeros change in two cases:

- where the expressing cells cannot bear the mean (none expresses the gene, or they would pass the largest value that any of
  the cells has): a share of zeros switches on, the one that `expressing_share` states;
- where `zeros_follow` is above 0 and some cells do not express the gene: that much of the way to the share that belongs to
  the wanted mean, up and down, because counts that are rarer leave more zeros. Where all cells express it the share of zeros
  is not known, with many counts a cell next to none, and stays 0.

Which cells switch is drawn; one that switches on takes a value of the gene.
What the range forbids is lost and reported: a mean below 0 becomes 0, one above the scale's ceiling stays under it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from steval.data.cells.scale import LARGEST_LOGNORM
from steval.data.compiled import compiled
from steval.errors import DataError
from steval.wording import counted

CARRIED_AT_ONCE = 4096
"""Cells that are carried together at most: who needs more of one perturbation carries them in parts of this size."""
_UNDER = 1 - 1e-6
"""Keeps the largest value strictly under the ceiling in float32."""
_SAME = 1e-12
"""Relative difference of sums under which a gene counts as unchanged and is left as it is."""


@dataclass(frozen=True)
class Carried:
    """Cells with the wanted mean, and what of it the range of the scale did not allow."""

    cells: sp.csr_matrix
    """CSR `[n, G]` in the dtype of the cells they came from, sorted, without stored zeros; lognorm."""
    missed: np.ndarray
    """Wanted less reached mean `[G]` float64: negative where less than nothing was wanted, positive above the ceiling."""


class Carrier:
    """Control cells that are to carry means: read once, for as many tries as it takes.

    `cells` are CSR `[n, G]`, lognorm, any float dtype. `target_sum` sets the ceiling log1p(target_sum); unknown: 15, the largest
    value that counts as lognorm. `zeros_follow` is from 0 to 1. One number is drawn of `generator`; the rest depends on it, on
    the cells and on each gene alone, so that every try switches the same cells. Raises `DataError` for no cells.
    """

    def __init__(
        self,
        cells: sp.csr_matrix,
        generator: np.random.Generator,
        *,
        target_sum: float | None = None,
        zeros_follow: float = 0.0,
    ):
        if not cells.shape[0]:
            raise DataError("a mean is carried by at least one cell, and there is none")
        if not 0 <= zeros_follow <= 1:
            raise DataError(f"zeros_follow is a share from 0 to 1, got {zeros_follow}")
        self.shape = cells.shape
        by_gene = sp.csc_matrix(cells)
        by_gene.eliminate_zeros()
        self._starts, self._rows, self._values = by_gene.indptr, by_gene.indices, by_gene.data
        ceiling = ceiling_of(target_sum)
        values = self._values
        typical = min(float(np.median(values)), ceiling) if len(values) else min(1.0, ceiling)
        reach = min(float(values.max()), ceiling) if len(values) else ceiling
        self._limits = typical, reach, ceiling
        self._follow = zeros_follow
        self._key = np.uint64(generator.integers(2**64, dtype=np.uint64))

    def tried(self, wanted: np.ndarray) -> "Try":
        """Values with the means `wanted [G]`. Raises `DataError` for means that are not finite or of another number of genes."""
        num_cells, num_genes = self.shape
        if wanted.shape != (num_genes,) or not np.isfinite(wanted).all():
            raise DataError(
                "a mean is carried by cells gene by gene, each a finite number: there are "
                f"{counted(num_genes, 'gene')}, and a mean of shape {list(wanted.shape)}"
                + ("" if np.isfinite(wanted).all() else " with NaN or infinite values")
            )
        wanted = np.asarray(wanted, dtype=np.float64)
        totals, number = np.empty(num_genes), np.empty(num_genes, dtype=np.int64)
        _plan(self._starts, self._values, wanted, num_cells, *self._limits, self._follow, totals, number)
        starts = np.concatenate([[0], np.cumsum(number)])
        carried, rows = np.empty(starts[-1], dtype=self._values.dtype), np.empty(starts[-1], dtype=np.int32)
        reached = np.empty(num_genes)
        _fill(
            self._starts, self._rows, self._values, wanted, num_cells, *self._limits, totals, starts, self._key, carried,
            rows, reached,
        )  # fmt: skip
        return Try(self.shape, carried, rows, starts, wanted - reached)


@dataclass(frozen=True)
class Try:
    """Values of carried cells, gene by gene (the parts of a CSC matrix), not yet put together."""

    shape: tuple[int, int]
    values: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    missed: np.ndarray
    """See `Carried`."""

    @property
    def mean_total(self) -> float:
        """Mean over cells of their totals of expm1, to about seven digits for float32 values."""
        return float(np.exp(self.values).sum(dtype=np.float64) - len(self.values)) / self.shape[0]

    def carried(self) -> Carried:
        """The cells themselves."""
        result = sp.csc_matrix((self.values, self.rows, self.starts), shape=self.shape).tocsr()
        result.eliminate_zeros()
        return Carried(result, self.missed)


def carry(
    cells: sp.csr_matrix,
    wanted: np.ndarray,
    generator: np.random.Generator,
    *,
    target_sum: float | None = None,
    zeros_follow: float = 0.0,
    scale: Literal["lognorm"] = "lognorm",
) -> Carried:
    """`cells` with mean expression `wanted [G]`, see `Carrier`; genes that have it are untouched."""
    if scale != "lognorm":
        raise DataError(f"cells on the scale {scale!r} cannot carry a mean; only lognorm cells can")
    return Carrier(cells, generator, target_sum=target_sum, zeros_follow=zeros_follow).tried(wanted).carried()


def ceiling_of(target_sum: float | None) -> float:
    """Largest value that a lognorm cell may have: a cell of one gene alone has log1p(target_sum)."""
    return (LARGEST_LOGNORM if target_sum is None else min(float(np.log1p(target_sum)), LARGEST_LOGNORM)) * _UNDER


def sensitivity(mean: np.ndarray) -> np.ndarray:
    """How much a gene of lognorm mean `mean` moves for a change of its log count by 1: d log(1 + x) / d log x."""
    return 1.0 - np.exp(-np.maximum(mean, 0.0))


def totals_of_cells(cells: sp.csr_matrix) -> np.ndarray:
    """Each cell's total of expm1 `[n]`, which lognorm data that was normalised over these genes has in common."""
    linear = np.expm1(cells.data.astype(np.float64))
    return np.add.reduceat(np.append(linear, 0.0), cells.indptr[:-1]) * (np.diff(cells.indptr) > 0)


def mean_of_cells(cells: sp.csr_matrix) -> np.ndarray:
    """Mean expression `[G]` float64, added up gene by gene as `carry` does."""
    by_gene = sp.csc_matrix(cells)
    totals = np.empty(cells.shape[1])
    _totals(by_gene.indptr, by_gene.data, totals)
    return totals / cells.shape[0]


@compiled
def expressing_share(share, ratio):  # type: ignore[no-untyped-def]
    """Share of expressing cells once a gene's mean has changed by `ratio`, if `share` expressed it before.

    Counts that occur independently at rate λ leave a share exp(−λ) of zeros; the rate changes with the mean:
    1 − (1 − share)^ratio.
    """
    return 1.0 - (1.0 - share) ** ratio


@compiled
def _totals(starts, values, totals):  # type: ignore[no-untyped-def]
    for gene in range(totals.shape[0]):
        total = 0.0
        for k in range(starts[gene], starts[gene + 1]):
            total += values[k]
        totals[gene] = total


@compiled
def _plan(starts, values, wanted, num_cells, typical, reach, ceiling, follow, totals, number):  # type: ignore[no-untyped-def]
    """Total of each gene `[G]` and the number of cells that are to express it `[G]`."""
    _totals(starts, values, totals)
    for gene in range(wanted.shape[0]):
        count = starts[gene + 1] - starts[gene]
        total, goal = totals[gene], max(wanted[gene], 0.0) * num_cells
        number[gene] = count
        if abs(goal - total) <= _SAME * max(goal, total):
            continue
        if goal <= 0:
            number[gene] = 0
            continue
        needed = np.ceil(goal / reach) if goal <= reach * num_cells else num_cells
        if count == 0:  # at the rate at which one count of the typical size gives the mean
            lawful = num_cells * (1.0 - np.exp(-goal / (num_cells * typical)))
        elif count == num_cells:
            lawful = float(count)
        else:
            lawful = num_cells * expressing_share(count / num_cells, goal / total)
        chosen = float(count)
        if count < needed:
            chosen = max(lawful, needed)
        elif follow > 0:
            chosen = max(count + follow * (lawful - count), needed)
        number[gene] = min(max(np.int64(np.rint(chosen)), np.int64(1)), np.int64(num_cells))


@compiled
def _random(state):  # type: ignore[no-untyped-def]
    """Next state and a number in [0, 1): splitmix64."""
    state += np.uint64(0x9E3779B97F4A7C15)
    mixed = state
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return state, np.float64(mixed >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def _fill(
    starts, indices, values, wanted, num_cells, typical, reach, ceiling, totals, places, key, carried, rows, reached
):  # type: ignore[no-untyped-def]
    """Values and rows of the carried cells, gene by gene, and the mean `[G]` that they reach."""
    for gene in range(wanted.shape[0]):
        begin, count = starts[gene], starts[gene + 1] - starts[gene]
        place, chosen = places[gene], places[gene + 1] - places[gene]
        goal = max(wanted[gene], 0.0) * num_cells
        if abs(goal - totals[gene]) <= _SAME * max(goal, totals[gene]):
            for k in range(count):
                carried[place + k], rows[place + k] = values[begin + k], indices[begin + k]
            reached[gene] = max(wanted[gene], 0.0)
            continue
        if chosen == 0:
            reached[gene] = 0.0
            continue
        state = key ^ (np.uint64(gene + 1) * np.uint64(0xD1342543DE82EF95))
        total = 0.0
        if chosen <= count:
            total = _keep(state, begin, count, chosen, indices, values, place, carried, rows)
        else:
            total = _switch_on(state, begin, count, chosen, num_cells, typical, indices, values, place, carried, rows)
        limit = reach if goal <= reach * chosen else ceiling
        reached[gene] = _scale(carried[place : place + chosen], total, min(goal, limit * chosen), limit) / num_cells


@compiled
def _keep(state, begin, count, chosen, indices, values, place, carried, rows):  # type: ignore[no-untyped-def]
    """Copy `chosen` of a gene's `count` values, drawn without replacement, in the order of the cells; their total."""
    left, total = chosen, 0.0
    for k in range(count):
        drawn = 0.0
        if left < count - k:
            state, drawn = _random(state)
        if drawn * (count - k) < left:
            carried[place], rows[place] = values[begin + k], indices[begin + k]
            total += values[begin + k]
            place += 1
            left -= 1
    return total


@compiled
def _switch_on(state, begin, count, chosen, num_cells, typical, indices, values, place, carried, rows):  # type: ignore[no-untyped-def]
    """Copy a gene's values and give `chosen - count` zeros, drawn without replacement, a value of the gene; the total."""
    left, zeros, total = chosen - count, num_cells - count, 0.0
    k = 0
    for row in range(num_cells):
        if k < count and indices[begin + k] == row:
            value = np.float64(values[begin + k])
            k += 1
        else:
            state, drawn = _random(state)
            zeros -= 1
            if drawn * (zeros + 1) >= left:
                continue
            left -= 1
            value = typical
            if count > 0:
                state, drawn = _random(state)
                value = np.float64(values[begin + np.int64(drawn * count)])
        carried[place], rows[place] = value, row
        total += value
        place += 1
    return total


@compiled
def _scale(values, total, goal, limit):  # type: ignore[no-untyped-def]
    """Multiply `values` by one factor so that they sum to `goal`, none above `limit`; the sum that is reached.

    What a value at the limit cannot take goes to the others, by the same rule.
    """
    full = False
    factor = goal / total
    while True:
        open_total, closed = 0.0, 0
        for k in range(values.shape[0]):
            if values[k] * factor > limit:
                closed += 1
            else:
                open_total += values[k]
        left = goal - closed * limit
        if open_total <= 0 or left <= 0:
            full = True
            break
        if left / open_total <= factor * (1 + 1e-12):
            break
        factor = left / open_total
    reached = 0.0
    for k in range(values.shape[0]):
        values[k] = limit if full else min(values[k] * factor, limit)
        reached += values[k]
    return reached
