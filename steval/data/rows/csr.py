"""CSR blocks: made of dense ones faster than by way of scipy's coordinates, and checked before compiled code reads them."""

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from steval.data.compiled import compiled
from steval.errors import DataError


def csr_of(block: np.ndarray | sp.csr_matrix) -> sp.csr_matrix:
    """The non-zero values of `block [n, G]` as CSR with sorted int32 columns, in its dtype; CSR is returned as it is."""
    if not isinstance(block, np.ndarray):
        return sp.csr_matrix(block)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(block, axis=1))])
    num_values = indptr[-1]
    data = np.empty(num_values + 1, dtype=block.dtype)
    indices = np.empty(num_values + 1, dtype=np.int32)
    _collect(block, indptr, indices, data)
    return sp.csr_matrix((data[:num_values], indices[:num_values], indptr), shape=block.shape)


def require_columns(matrix: sp.csr_matrix, path: Path) -> sp.csr_matrix:
    """`matrix` (sorted columns) as it is, if every column lies inside its shape; else a `DataError`.

    Compiled code, scipy's and ours, does not look where it writes.
    """
    filled = np.flatnonzero(np.diff(matrix.indptr))
    first, last = matrix.indices[matrix.indptr[filled]], matrix.indices[matrix.indptr[filled + 1] - 1]
    if len(filled) and (first.min() < 0 or last.max() >= matrix.shape[1]):
        raise DataError(f"{path} is damaged: X holds values outside its {matrix.shape[1]} columns")
    return matrix


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
