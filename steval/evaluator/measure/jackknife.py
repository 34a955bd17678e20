"""Sampling correction of a group's log profile: its delete-1 jackknife variance, summed over genes, in one pass over the non-zeros.

A group of n cells with counts y has gene sums P, total S and the profile b = log1p(T P / S). Leaving cell i out gives
v_i = log1p(T (P − y_i) / (S − l_i)), l_i being the cell's total, and the correction is

    C = (n − 1) / n · Σ over genes of Σ over cells of (v_i − mean of v)²

(cell-eval2's, for `expr_mse_unbiased`). Every cell moves every gene, for the total changes; but where a cell has no count, v_i
depends on the cell through e = l / S alone. With the mean share m, u = (e − m) / (1 − m) and ρ = t (1 − m) / (1 − m t), where
t = 1 / (1 + T P / S), and up to a constant of the gene, v = log1p(−u ρ) − log1p(−u) = Σ over k of u^k (1 − ρ^k) / k: its sums
over cells follow from a few moments of u. A cell with y counts adds log1p(−y T / (S + T P) / (1 − e t)) to that. Where shares
are large the series would be long; there are few cells then, and all of them are taken one by one.
"""

import math

import numpy as np
import scipy.sparse as sp

from steval.data.compiled import compiled

MOST_TERMS = 24
LARGEST_SHIFT = 0.25
"""Shares u up to which the series is used; the largest power left out is then under 1e-14 of the first."""
_ACCURATE = 1e-17


def moments_of_shares(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Of the cells' totals `[n]`: u `[n]`, its sums of powers `[2 terms + 1]`, the mean share and the number of terms.

    0 terms where the series is not used.
    """
    shares = totals / totals.sum()
    mean = 1.0 / len(totals)
    shifted = (shares - mean) / (1.0 - mean)
    largest = float(np.abs(shifted).max())
    if largest > LARGEST_SHIFT:
        return shifted, np.empty(0), mean, 0
    terms = 2 if largest == 0 else min(MOST_TERMS, max(2, math.ceil(math.log(_ACCURATE) / math.log(largest))))
    powers = shifted[None, :] ** np.arange(2 * terms + 1)[:, None]
    return shifted, powers.sum(axis=1), mean, terms


class Correction:
    """The correction of one group, its cells added piece by piece; `sums [G]` are the gene sums of all of them."""

    def __init__(self, sums: np.ndarray, totals: np.ndarray, target_sum: float):
        self._num_cells = len(totals)
        self._sums = sums.astype(np.float64)
        self._total = float(totals.sum())
        self._target = target_sum
        self._is_empty = self._num_cells < 2 or self._total <= 0
        if self._is_empty:
            return
        self._totals = totals
        self._shifted, moments, self._mean, terms = moments_of_shares(totals)
        self._first, self._second = np.zeros(len(sums)), np.zeros(len(sums))
        self._in_series = terms > 0
        if self._in_series:
            whole = self._total + target_sum * self._sums
            self._units, self._slopes = self._total / whole, target_sum / whole
            self._ratios = self._units * (1.0 - self._mean) / (1.0 - self._mean * self._units)
            sum_series(self._ratios, moments, terms, self._first, self._second)

    def add(self, piece: sp.csr_matrix, rows: np.ndarray, cells: np.ndarray) -> None:
        """Add the `rows` of `piece`, which are the group's `cells` by number."""
        if self._is_empty:
            return
        stored = (piece.indptr, piece.indices, piece.data, rows, self._totals[cells] / self._total)
        if self._in_series:
            of_genes = (self._units, self._slopes, self._ratios)
            add_expressed(*stored, self._shifted[cells], *of_genes, self._first, self._second)
        else:
            add_whole(*stored, self._sums, self._total, self._target, self._first, self._second)

    def value(self) -> float:
        """The correction; 0 for a group of fewer than two cells, or without counts."""
        if self._is_empty:
            return 0.0
        spread = float((self._second - self._first**2 / self._num_cells).sum())
        return max((self._num_cells - 1) / self._num_cells * spread, 0.0)


@compiled
def sum_series(ratios, moments, terms, first, second):  # type: ignore[no-untyped-def]
    """Σ and Σ² over all cells of v where no cell has a count, by ρ of each gene and the moments of u."""
    weights = np.empty(terms + 1)
    for gene in range(ratios.shape[0]):
        power = 1.0
        for k in range(1, terms + 1):
            power *= ratios[gene]
            weights[k] = (1.0 - power) / k
            first[gene] += weights[k] * moments[k]
        for k in range(1, terms + 1):
            for other in range(1, terms + 1):
                second[gene] += weights[k] * weights[other] * moments[k + other]


@compiled
def add_expressed(  # type: ignore[no-untyped-def]
    indptr, indices, data, rows, shares, shifts, units, slopes, ratios, first, second
):
    """What the counts of cells add to Σ and Σ² of v; of genes: t, T / (S + T P) and ρ."""
    for position in range(rows.shape[0]):
        row = rows[position]
        share, shift = shares[position], shifts[position]
        without = log1p_small(-shift)
        for k in range(indptr[row], indptr[row + 1]):
            count = np.float64(data[k])
            if count == 0.0:
                continue
            gene = indices[k]
            base = log1p_small(-shift * ratios[gene]) - without
            step = log1p_small(-count * slopes[gene] / (1.0 - share * units[gene]))
            first[gene] += step
            second[gene] += step * (2.0 * base + step)


@compiled
def add_whole(  # type: ignore[no-untyped-def]
    indptr, indices, data, rows, shares, sums, total, target, first, second
):
    """Σ and Σ² of v − b of all genes, cell by cell; a cell that holds all counts of its group leaves the profile 0."""
    counts = np.zeros(sums.shape[0])
    for position in range(rows.shape[0]):
        row = rows[position]
        for k in range(indptr[row], indptr[row + 1]):
            counts[indices[k]] += data[k]
        rest = total - counts.sum() if shares[position] < 1.0 else 0.0
        for gene in range(sums.shape[0]):
            value = -math.log1p(target * sums[gene] / total)
            if rest > 0.0:
                value += math.log1p(target * (sums[gene] - counts[gene]) / rest)
            first[gene] += value
            second[gene] += value * value
        for k in range(indptr[row], indptr[row + 1]):
            counts[indices[k]] = 0.0


@compiled
def log1p_small(x):  # type: ignore[no-untyped-def]
    """log1p, by the series of 2 artanh(x / (2 + x)) where x is small."""
    if abs(x) > 0.03:
        return math.log1p(x)
    z = x / (2.0 + x)
    square = z * z
    return 2.0 * z * (1.0 + square * (1.0 / 3 + square * (0.2 + square * (1.0 / 7 + square / 9))))
