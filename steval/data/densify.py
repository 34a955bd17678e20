"""Sparse rows to dense float32 at memory speed: the inner loops of the training loader, compiled once and cached.

All kernels release the interpreter lock, so that batches can be made by threads beside the training step.
"""

import math

import numpy as np
from numba import njit

TABLE = 64
"""Counts below this are looked up: most counts of a cell are small, and log1p is the costly part."""


@njit(cache=True, nogil=True)
def scatter_rows(out, numbers, starts, lengths, data, columns):  # type: ignore[no-untyped-def]
    """`out[numbers[i]]` becomes the dense row of `data[starts[i] : starts[i] + lengths[i]]` at `columns`; others untouched."""
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        for k in range(starts[i], starts[i] + lengths[i]):
            row[columns[k]] += data[k]


@njit(cache=True, nogil=True)
def scatter_aligned(out, numbers, starts, lengths, data, columns, position):  # type: ignore[no-untyped-def]
    """As `scatter_rows`, each column mapped by `position`; -1 drops it."""
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        for k in range(starts[i], starts[i] + lengths[i]):
            column = position[columns[k]]
            if column >= 0:
                row[column] += data[k]


@njit(cache=True, nogil=True)
def scatter_counts(out, numbers, starts, lengths, data, columns, position, target_sum):  # type: ignore[no-untyped-def]
    """As `scatter_aligned` for counts: lognorm to `target_sum`, the total taken over all genes of the source."""
    table = np.empty(TABLE, dtype=np.float32)
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        total = 0.0
        for k in range(starts[i], starts[i] + lengths[i]):
            total += data[k]
        if total <= 0.0:
            continue
        factor = target_sum / total
        for count in range(TABLE):
            table[count] = math.log1p(count * factor)
        for k in range(starts[i], starts[i] + lengths[i]):
            column = position[columns[k]]
            if column < 0:
                continue
            value = data[k]
            whole = int(value)
            if value < TABLE and whole == value:
                row[column] = table[whole]
            else:
                row[column] = math.log1p(value * factor)
