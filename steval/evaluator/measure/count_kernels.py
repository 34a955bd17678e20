"""Compiled passes over cells of counts (CSR): checks, sums, gene-major keys; and the ranks of halves of the cells.

A cell's expression is compared as log1p of counts per million (CPM) in float64. A positive float64 orders as its bits do, so
a value is kept as a whole number, its *key*: the bits less those of `LEAST`. Real cells (whole counts, totals up to a
million) have CPM of 1 and more, hence keys from 0 to under 2^55, which leaves room for what a cell's place in the splits is.
"""

import math

import numpy as np

from steval.data.compiled import compiled
from steval.evaluator.measure.rank_kernels import first_not_below, two_sided

LEAST = 0.5
"""Below log1p(1): the smallest value of a cell whose counts are whole and whose total is a million at most."""
BIAS = int(np.array(LEAST).view(np.int64))
CODE_BITS = 8
"""Low bits of a key that hold a cell's code while keys are sorted."""
BLOCK = 16
"""Control values between two places at which numbers of cells by half are on record."""

_MILLION = 1_000_000.0


@compiled
def check_counts(indptr, data, totals):  # type: ignore[no-untyped-def]
    """Set each cell's total `[n]`; says whether all values are finite, whether all are whole, and the smallest."""
    finite = True
    whole = True
    smallest = math.inf
    for row in range(indptr.shape[0] - 1):
        total = 0.0
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            total += value
            smallest = min(smallest, value)
            if not math.isfinite(value):
                finite = False
            elif value != math.floor(value):
                whole = False
        totals[row] = total
    return finite, whole, smallest


@compiled
def per_million(indptr, data, totals, cpm):  # type: ignore[no-untyped-def]
    """Counts per million of every stored value, in scanpy's order of operations: count / (total / 10^6)."""
    for row in range(indptr.shape[0] - 1):
        divisor = totals[row] / _MILLION
        if divisor == 0.0:
            divisor = 1.0
        for k in range(indptr[row], indptr[row + 1]):
            cpm[k] = np.float64(data[k]) / divisor


@compiled
def add_counts(indptr, indices, data, cpm, factor, numbers, sums, means):  # type: ignore[no-untyped-def]
    """Add cells to each gene's number of non-zeros, sum of counts and sum of CPM × `factor` `[G]`, cell by cell in order."""
    for k in range(indptr[indptr.shape[0] - 1]):
        if data[k] == 0:
            continue
        gene = indices[k]
        numbers[gene] += 1
        sums[gene] += data[k]
        means[gene] += cpm[k] * factor


@compiled
def add_halves(indptr, indices, data, cpm, halves, factors, sums, means):  # type: ignore[no-untyped-def]
    """As `add_counts` for each half that a cell is in: `halves [n, splits]` number them, -1 for none; sums `[G, halves]`."""
    for row in range(indptr.shape[0] - 1):
        for split in range(halves.shape[1]):
            half = halves[row, split]
            if half < 0:
                continue
            factor = factors[half]
            for k in range(indptr[row], indptr[row + 1]):
                gene = indices[k]
                sums[gene, half] += data[k]
                means[gene, half] += cpm[k] * factor


@compiled
def place_keys(indptr, indices, data, logs, codes, shift, column, next_place, keys):  # type: ignore[no-untyped-def]
    """Scatter the keys of cells into gene-major `keys`; `column [G]` is a gene's place among the ranked ones, -1 for none.

    `logs` are log1p of CPM viewed as int64; `codes [n]` go into the low `shift` bits.
    """
    for row in range(indptr.shape[0] - 1):
        code = np.int64(codes[row])
        for k in range(indptr[row], indptr[row + 1]):
            target = column[indices[k]]
            if target < 0 or data[k] == 0:
                continue
            keys[next_place[target]] = ((logs[k] - BIAS) << shift) | code
            next_place[target] += 1


@compiled
def count_by_half(codes, starts, members, blocks, block_starts):  # type: ignore[no-untyped-def]
    """Of sorted values: numbers of cells by half before each block of `BLOCK`, `blocks [B, halves]`; one more at a gene's end.

    `members [codes, halves]` is 1 where cells of a code are in a half.
    """
    num_halves = members.shape[1]
    for gene in range(starts.shape[0] - 1):
        begin, end = starts[gene], starts[gene + 1]
        place = block_starts[gene]
        running = np.zeros(num_halves, dtype=np.int32)
        for k in range(begin, end):
            if (k - begin) % BLOCK == 0:
                blocks[place] = running
                place += 1
            running += members[codes[k]]
        blocks[place] = running


@compiled
def tie_terms_by_half(keys, codes, starts, members, terms):  # type: ignore[no-untyped-def]
    """Σ (t³ − t) over each gene's blocks of equal non-zeros, in each half: `terms [G, halves]`."""
    num_halves = members.shape[1]
    for gene in range(starts.shape[0] - 1):
        k, end = starts[gene], starts[gene + 1]
        while k < end:
            same = 1
            while k + same < end and keys[k + same] == keys[k]:
                same += 1
            if same > 1:
                tied = np.zeros(num_halves)
                for other in range(k, k + same):
                    tied += members[codes[other]]
                for half in range(num_halves):
                    terms[gene, half] += tied[half] * tied[half] * tied[half] - tied[half]
            k += same


@compiled
def rank_halves(  # type: ignore[no-untyped-def]
    rows,
    row_codes,
    counts,
    first,
    num_cells,
    controls,
    control_codes,
    control_starts,
    blocks,
    block_starts,
    control_terms,
    num_controls,
    members,
    ranked,
    p_value,
):
    """Two-sided p `[halves, G]` of each half of a perturbation's cells against the same half of the controls.

    `rows [g, width]`: sorted keys of genes `first` to `first + g`, `counts [g]` of them; `row_codes` their cells' codes.
    `ranked [halves, G]`: where it is False, p stays as it is. As `rank_kernels.rank_genes`, each half at once.
    """
    num_halves = members.shape[1]
    below = np.empty(num_halves, dtype=np.int64)
    same_cells = np.empty(num_halves)
    same_controls = np.empty(num_halves)
    for row in range(rows.shape[0]):
        gene = first + row
        begin, end = control_starts[gene], control_starts[gene + 1]
        last_block = blocks[block_starts[gene] + (end - begin + BLOCK - 1) // BLOCK]
        zeros = num_controls - last_block
        wins = np.zeros(num_halves)
        terms = control_terms[gene].copy()
        present = np.zeros(num_halves)
        place = begin
        below[:] = 0
        k = 0
        while k < counts[row]:
            value = rows[row, k]
            same_cells[:] = 0.0
            while k < counts[row] and rows[row, k] == value:
                same_cells += members[row_codes[row, k]]
                k += 1
            target = first_not_below(controls, place, end, value)
            block = (target - begin) // BLOCK
            if begin + block * BLOCK > place:
                place = begin + block * BLOCK
                below[:] = blocks[block_starts[gene] + block]
            while place < target:
                below += members[control_codes[place]]
                place += 1
            same_controls[:] = 0.0
            other = place
            while other < end and controls[other] == value:
                same_controls += members[control_codes[other]]
                other += 1
            for half in range(num_halves):
                cells, equal = same_cells[half], same_controls[half]
                wins[half] += cells * (zeros[half] + below[half] + 0.5 * equal)
                both = cells + equal
                terms[half] += (both * both * both - both) - (equal * equal * equal - equal)
                present[half] += cells
        for half in range(num_halves):
            if not ranked[half, gene]:
                continue
            without = num_cells[half] - present[half]
            block_of_zeros = without + zeros[half]
            total = terms[half] + block_of_zeros * block_of_zeros * block_of_zeros - block_of_zeros
            statistic = wins[half] + 0.5 * without * zeros[half]
            p_value[half, gene] = two_sided(statistic, float(num_cells[half]), float(num_controls[half]), total)
