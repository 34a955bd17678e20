"""The inner loops of the training loader, compiled once and cached: sparse rows to dense or packed float32, and marks of rows.

All kernels release the interpreter lock, so that batches can be made by threads beside the training step. Those that read
stored columns look at them first: compiled code does not look where it writes, and values stored twice in one place must be
added up before a logarithm. They answer `FINE`, or stop with `UNSORTED` (columns do not ascend) or `OUTSIDE` (of the matrix).
"""

import math

import numpy as np

from steval.data.compiled import compiled

TABLE = 64
"""Counts below this are looked up: most counts of a cell are small, and log1p is the costly part."""


FINE, UNSORTED, OUTSIDE = 0, 1, 2


@compiled
def _fill_table(table, factor):  # type: ignore[no-untyped-def]
    for count in range(TABLE):
        table[count] = math.log1p(count * factor)


@compiled
def _lognormed(count, factor, table):  # type: ignore[no-untyped-def]
    """log1p of `count * factor`, by the table that `_fill_table` made for the factor where it can be."""
    whole = int(count)
    if 0 <= count < TABLE and whole == count:
        return table[whole]
    return np.float32(math.log1p(count * factor))


@compiled
def scatter_rows(out, numbers, starts, lengths, data, columns, num_columns):  # type: ignore[no-untyped-def]
    """`out[numbers[i]]` becomes the dense row of `data[starts[i] : starts[i] + lengths[i]]` at `columns`; others untouched."""
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        before = -1
        for k in range(starts[i], starts[i] + lengths[i]):
            column = columns[k]
            if column <= before:
                return UNSORTED if column >= 0 else OUTSIDE
            if column >= num_columns:
                return OUTSIDE
            before = column
            row[column] = data[k]
    return FINE


@compiled
def pick_rows(starts, lengths, data, columns, picked_data, picked_columns):  # type: ignore[no-untyped-def]
    """Copy `data[starts[i] : starts[i] + lengths[i]]` and their `columns`, row after row, to the `picked` arrays."""
    end = 0
    for i in range(len(starts)):
        start, length = starts[i], lengths[i]
        picked_data[end : end + length] = data[start : start + length]
        picked_columns[end : end + length] = columns[start : start + length]
        end += length


@compiled
def count_kept(lengths, columns, num_columns, position, kept):  # type: ignore[no-untyped-def]
    """`kept[i]`: how many of row i's `columns` have a place in `position` (empty: all have); rows lie one after the other."""
    end = 0
    for i in range(len(lengths)):
        start, end = end, end + lengths[i]
        kept[i] = end - start
        ascending = True
        for k in range(start + 1, end):
            ascending &= columns[k - 1] < columns[k]
        if not ascending:
            return UNSORTED
        if end > start and (columns[start] < 0 or columns[end - 1] >= num_columns):
            return OUTSIDE
        if len(position):
            for k in range(start, end):
                kept[i] -= position[columns[k]] < 0
    return FINE


@compiled
def pack_rows(begins, lengths, data, columns, position, target_sum, packed_data, packed_columns):  # type: ignore[no-untyped-def]
    """Rows that `count_kept` found fine, each to its place in the `packed` arrays from `begins[i]` on; lognormed to `target_sum`
    as by `scatter_counts`, as they are where that is 0."""
    table = np.empty(TABLE, dtype=np.float32)
    end = 0
    for i in range(len(lengths)):
        start, end = end, end + lengths[i]
        place = begins[i]
        if len(position):
            for k in range(start, end):
                column = position[columns[k]]
                if column >= 0:
                    packed_columns[place] = column
                    packed_data[place] = data[k]
                    place += 1
        else:
            packed_columns[place : place + end - start] = columns[start:end]
            packed_data[place : place + end - start] = data[start:end]
            place += end - start
        if target_sum > 0.0:
            total = 0.0
            for k in range(start, end):
                total += data[k]
            factor = target_sum / total if total > 0.0 else 0.0
            _fill_table(table, factor)
            for k in range(begins[i], place):
                packed_data[k] = _lognormed(packed_data[k], factor, table)


@compiled
def scatter_aligned(out, numbers, starts, lengths, data, columns, position):  # type: ignore[no-untyped-def]
    """As `scatter_rows`, each column mapped by `position`; -1 drops it."""
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        before = -1
        for k in range(starts[i], starts[i] + lengths[i]):
            column = columns[k]
            if column <= before:
                return UNSORTED if column >= 0 else OUTSIDE
            if column >= len(position):
                return OUTSIDE
            before = column
            target = position[column]
            if target >= 0:
                row[target] = data[k]
    return FINE


@compiled
def scatter_counts(out, numbers, starts, lengths, data, columns, position, target_sum):  # type: ignore[no-untyped-def]
    """As `scatter_aligned` for counts: lognorm to `target_sum`, the total taken over all genes of the source."""
    table = np.empty(TABLE, dtype=np.float32)
    for i in range(len(numbers)):
        row = out[numbers[i]]
        row[:] = 0
        total = 0.0
        before = -1
        for k in range(starts[i], starts[i] + lengths[i]):
            column = columns[k]
            if column <= before:
                return UNSORTED if column >= 0 else OUTSIDE
            before = column
            total += data[k]
        if before >= len(position):
            return OUTSIDE
        if total <= 0.0:
            continue
        factor = target_sum / total
        _fill_table(table, factor)
        for k in range(starts[i], starts[i] + lengths[i]):
            column = position[columns[k]]
            if column >= 0:
                row[column] = _lognormed(data[k], factor, table)
    return FINE


_MIX = np.uint64(0x9E3779B97F4A7C15)


@compiled
def digest_sparse(starts, stops, bits, columns):  # type: ignore[no-untyped-def]
    """64-bit digest and number of non-zero values of each row; `bits` are the float32 values as uint32, columns ascend."""
    digests = np.zeros(len(starts), dtype=np.uint64)
    counts = np.zeros(len(starts), dtype=np.int64)
    for i in range(len(starts)):
        digest = np.uint64(0)
        for k in range(starts[i], stops[i]):
            if bits[k] != 0:
                digest = (digest ^ ((np.uint64(columns[k]) << np.uint64(32)) | np.uint64(bits[k]))) * _MIX
                digest ^= digest >> np.uint64(29)
                counts[i] += 1
        digests[i] = digest
    return digests, counts


@compiled
def digest_dense(bits):  # type: ignore[no-untyped-def]
    """As `digest_sparse` for dense rows `[n, G]`; the same profile has the same digest."""
    digests = np.zeros(len(bits), dtype=np.uint64)
    counts = np.zeros(len(bits), dtype=np.int64)
    for i in range(len(bits)):
        digest = np.uint64(0)
        for k in range(bits.shape[1]):
            if bits[i, k] != 0:
                digest = (digest ^ ((np.uint64(k) << np.uint64(32)) | np.uint64(bits[i, k]))) * _MIX
                digest ^= digest >> np.uint64(29)
                counts[i] += 1
        digests[i] = digest
    return digests, counts
