"""CSR blocks in one form: columns ascend, no place is stored twice, no zero is stored; values are plain numbers.

scipy, anndata and cell-eval add values up that are stored in one place; what counts stored values (detected genes, ranks)
must not count a stored zero. Every reader of cells ends here, so nothing above asks how a matrix was stored.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.data.compiled import compiled
from steval.errors import DataError
from steval.wording import counted

LARGEST_COLUMN = np.iinfo(np.int32).max


def csr_of(block: np.ndarray | sp.csr_matrix) -> sp.csr_matrix:
    """The non-zero values of `block [n, G]` as CSR with sorted int32 columns, in its dtype; CSR is returned as it is.

    Made faster than by way of scipy's coordinates.
    """
    if not isinstance(block, np.ndarray):
        return sp.csr_matrix(block)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(block, axis=1))])
    num_values = indptr[-1]
    data = np.empty(num_values + 1, dtype=block.dtype)
    indices = np.empty(num_values + 1, dtype=np.int32)
    _collect(block, indptr, indices, data)
    return sp.csr_matrix((data[:num_values], indices[:num_values], indptr), shape=block.shape)


def canonical(matrix: sp.csr_matrix, what: str = "the data") -> sp.csr_matrix:
    """The same numbers with ascending columns, values of one place added up and no stored zero; `matrix` stays as it is.

    Values are added in float64 (whole numbers in int64), so that the order in which they are stored does not matter. Columns
    outside the shape are a `DataError` that names `what`: compiled code, scipy's and ours, does not look where it writes.
    """
    ascending, inside, filled = _look(matrix.indptr, matrix.indices, matrix.data, matrix.shape[1])
    if not inside:
        raise outside(what, matrix.shape[1])
    if not ascending:
        wide = np.int64 if matrix.dtype.kind in "iu" else np.float64
        added = sp.csr_matrix(matrix.astype(wide, copy=True))
        added.sum_duplicates()
        matrix = added if matrix.dtype.kind in "iu" else added.astype(matrix.dtype)
        filled = np.count_nonzero(matrix.data) == matrix.nnz
    if not filled:
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def plain_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """`values` in a type that compiled code takes: float16 and bool are widened, foreign byte orders turned; others kept.

    `what` names them for the `DataError` about values that are no real numbers.
    """
    kept = number_type(values.dtype, what)
    return values if values.dtype == kept else values.astype(kept)


def number_type(dtype: "np.dtype[Any]", what: str) -> "np.dtype[Any]":
    """The type in which stored values of `dtype` are given; text, complex and compound types are a `DataError`."""
    if dtype.kind not in "fiub":
        raise DataError(f"{what} holds values of type {dtype}, not real numbers")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return dtype.newbyteorder("=")


def outside(what: str, num_columns: int) -> DataError:
    """The error about values that lie beyond the columns of their matrix."""
    return DataError(f"{what} is damaged: X holds values outside its {counted(num_columns, 'column')}")


@compiled
def _look(indptr, columns, data, num_columns):  # type: ignore[no-untyped-def]
    """Whether columns ascend in every row, whether all lie inside, whether no value is zero. Counts, which vectorise."""
    descents, beyond, zeros = 0, 0, 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        for k in range(start + 1, stop):
            descents += columns[k] <= columns[k - 1]
        if stop > start:
            beyond += (columns[start] < 0) | (columns[stop - 1] >= num_columns)
    if descents:
        for k in range(len(columns)):
            beyond += (columns[k] < 0) | (columns[k] >= num_columns)
    for k in range(len(data)):
        zeros += data[k] == 0
    return descents == 0, beyond == 0, zeros == 0


@compiled
def _collect(block, indptr, indices, data):  # type: ignore[no-untyped-def]
    """Write every value at the next free place and go on from there only if it was not zero: no branch to mispredict.

    The last zeros of the last row are written one place behind its values, hence the spare place of `indices` and `data`.
    """
    for row in range(block.shape[0]):
        place = indptr[row]
        for column in range(block.shape[1]):
            value = block[row, column]
            indices[place] = column
            data[place] = value
            place += value != 0
