"""Compiled passes over CSR cells for training profiles and integrity checks: sums, norms, totals and digests in one reading.

A cell's digest is the sum over its non-zero values, modulo 2^64, of a mix of the value's float32 bits and a random odd number
that stands for the gene; equal cells have equal digests whatever their storage.
"""

import math

import numpy as np

from steval.data.compiled import compiled

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_ZERO = np.uint64(0)


@compiled
def measure_cells(indptr, indices, data, bits, keys, total, squares, totals, norms, digests):  # type: ignore[no-untyped-def]
    """Add cells to `total [G]` and `squares [G]`; set each cell's total of expm1, sum of squares and digest `[n]`.

    `bits`: the values as float32, viewed as uint32; `keys [G]` uint64.
    """
    for row in range(indptr.shape[0] - 1):
        natural = 0.0
        norm = 0.0
        digest = _ZERO
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            if value == 0:
                continue
            gene = indices[k]
            total[gene] += value
            squared = value * value
            squares[gene] += squared
            norm += squared
            natural += math.expm1(value)
            key = keys[gene]
            mixed = (np.uint64(bits[k]) + key) * _MIX
            mixed ^= mixed >> _SHIFT
            digest += mixed * key
        totals[row] = natural
        norms[row] = norm
        digests[row] = digest


@compiled
def sum_cells(indptr, indices, data, bits, keys, codes, sums, digests):  # type: ignore[no-untyped-def]
    """Add cell i to row `codes[i]` of `sums [groups, G]` and set its digest."""
    for row in range(indptr.shape[0] - 1):
        digest = _ZERO
        target = sums[codes[row]]
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            if value == 0:
                continue
            gene = indices[k]
            target[gene] += value
            key = keys[gene]
            mixed = (np.uint64(bits[k]) + key) * _MIX
            mixed ^= mixed >> _SHIFT
            digest += mixed * key
        digests[row] = digest
