"""Compiled kernels of the Mann–Whitney test on sparse groups, with the values of numba-mwu 0.2.0 (which pdex 0.3.0 uses).

Expression is non-negative, so a gene's zeros are one block of ties below all other values; only non-zeros are sorted. With n_a
perturbed and n_b control cells, U = Σ over perturbed cells of (controls below + half the controls equal); its tie term is
Σ (t³ − t) over blocks of equal values. Controls are sorted once for each gene; a perturbation's values find their place by
binary search, and only blocks that they join change the controls' tie term. Every count is whole or half, hence exact.

Layout: a group is gene-major, `values[starts[g]:starts[g + 1]]` being the non-zeros of gene g.
"""

import math

import numpy as np

from steval.data.compiled import compiled


@compiled
def count_values(indices, data, counts):  # type: ignore[no-untyped-def]
    """Add the number of non-zero values of each gene to `counts [G]`."""
    for k in range(indices.shape[0]):
        if data[k] != 0:
            counts[indices[k]] += 1


@compiled
def add_cells(indptr, indices, data, factor, next_place, values, sums, scaled_sums):  # type: ignore[no-untyped-def]
    """Scatter cells (CSR) into gene-major `values` and add them up, cell by cell in order.

    `next_place [G]` is where each gene's next value goes. `sums [G]` float64; `scaled_sums [G]` adds value × `factor` in the
    data's own precision. Returns the smallest and largest value and whether all are finite.
    """
    smallest = math.inf
    largest = -math.inf
    finite = True
    for k in range(indptr[indptr.shape[0] - 1]):
        value = data[k]
        if value == 0:
            continue
        gene = indices[k]
        values[next_place[gene]] = value
        next_place[gene] += 1
        sums[gene] += value
        scaled_sums[gene] += value * factor
        if not math.isfinite(value):
            finite = False
        smallest = min(smallest, value)
        largest = max(largest, value)
    return smallest, largest, finite


@compiled
def pad_genes(values, starts, first, last, padded, largest):  # type: ignore[no-untyped-def]
    """Copy genes `first` to `last` into rows of `padded [last - first, width]`; what is left of a row is `largest`."""
    width = padded.shape[1]
    for gene in range(first, last):
        row = padded[gene - first]
        count = starts[gene + 1] - starts[gene]
        begin = starts[gene]
        for k in range(count):
            row[k] = values[begin + k]
        for k in range(count, width):
            row[k] = largest


@compiled
def keep_sorted(padded, starts, first, last, values, tie_terms):  # type: ignore[no-untyped-def]
    """Copy sorted rows back into `values`, and set `tie_terms [G]` to Σ (t³ − t) over each gene's equal non-zeros."""
    for gene in range(first, last):
        row = padded[gene - first]
        count = starts[gene + 1] - starts[gene]
        begin = starts[gene]
        term = 0.0
        block = 1.0
        for k in range(count):
            values[begin + k] = row[k]
            if k > 0 and row[k] == row[k - 1]:
                block += 1.0
            else:
                term += block * block * block - block
                block = 1.0
        term += block * block * block - block
        tie_terms[gene] = term


@compiled
def first_not_below(values, begin, end, value):  # type: ignore[no-untyped-def]
    """Position of the first of the sorted `values[begin:end]` that is not below `value`; `end` if there is none.

    The answer is usually near `begin`: growing steps find its window of 16, which is counted without branches.
    """
    step = 16
    while begin + step <= end and values[begin + step - 1] < value:
        begin += step
        step += step
    while step > 16:
        step >>= 1
        if begin + step <= end and values[begin + step - 1] < value:
            begin += step
    below = 0
    if begin + 16 <= end:
        for k in range(16):
            below += values[begin + k] < value
    else:
        for k in range(begin, end):
            below += values[k] < value
    return begin + below


@compiled
def rank_genes(  # type: ignore[no-untyped-def]
    padded,
    starts,
    first,
    last,
    num_cells,
    control_values,
    control_starts,
    control_ties,
    num_controls,
    statistic,
    p_value,
):
    """U and two-sided p (normal approximation, continuity and tie corrected) of genes `first` to `last`.

    `padded [last - first, width]` holds each gene's sorted non-zero values of the `num_cells` perturbed cells.
    """
    for gene in range(first, last):
        row = padded[gene - first]
        count = starts[gene + 1] - starts[gene]
        begin, end = control_starts[gene], control_starts[gene + 1]
        control_zeros = num_controls - (end - begin)
        wins = 0.0
        ties = control_ties[gene]
        place = begin
        k = 0
        while k < count:
            value = row[k]
            same = 1
            while k + same < count and row[k + same] == value:
                same += 1
            place = first_not_below(control_values, place, end, value)
            equal = 0
            while place + equal < end and control_values[place + equal] == value:
                equal += 1
            wins += same * (control_zeros + (place - begin) + 0.5 * equal)
            if same + equal > 1:
                both = float(same + equal)
                alone = float(equal)
                ties += (both * both * both - both) - (alone * alone * alone - alone)
            place += equal
            k += same
        zeros = num_cells - count
        wins += 0.5 * zeros * control_zeros
        block = float(zeros + control_zeros)
        ties += block * block * block - block
        statistic[gene] = wins
        p_value[gene] = two_sided(wins, float(num_cells), float(num_controls), ties)


@compiled
def two_sided(wins, num_cells, num_controls, ties):  # type: ignore[no-untyped-def]
    """p of U = `wins`, in the order of operations of numba-mwu."""
    total = num_cells + num_controls
    largest = max(wins, num_cells * num_controls - wins)
    inner = (total + 1.0) - ties / (total * (total - 1.0))
    variance = num_cells * num_controls / 12.0 * inner
    if variance <= 0.0:
        return 1.0
    z = (largest - num_cells * num_controls / 2.0 - 0.5) / math.sqrt(variance)
    p = 0.5 * math.erfc(z / math.sqrt(2.0)) * 2.0
    return min(max(p, 0.0), 1.0)


@compiled
def back_transform(means):  # type: ignore[no-untyped-def]
    """expm1 in the precision of `means`, as pdex has it."""
    result = np.empty_like(means)
    for k in range(means.shape[0]):
        result[k] = np.expm1(means[k])
    return result


@compiled
def fold_changes(target, reference, epsilon):  # type: ignore[no-untyped-def]
    """log2((target + ε) / (reference + ε)) `[G]` float64; 0 where neither is expressed."""
    result = np.empty(target.shape[0], dtype=np.float64)
    for k in range(target.shape[0]):
        ratio = np.log2((target[k] + epsilon) / (reference[k] + epsilon))
        result[k] = 0.0 if math.isnan(ratio) else ratio
    return result


@compiled
def percent_changes(target, reference, epsilon):  # type: ignore[no-untyped-def]
    """(target − reference) / (reference + ε) `[G]` float64; 0 where neither is expressed."""
    result = np.empty(target.shape[0], dtype=np.float64)
    for k in range(target.shape[0]):
        change = (target[k] - reference[k]) / (reference[k] + epsilon)
        result[k] = 0.0 if math.isnan(change) else change
    return result
