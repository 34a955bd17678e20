"""Dense blocks as CSR, several times as fast as by way of scipy's coordinates."""

import numpy as np
import scipy.sparse as sp


def csr_of(block: np.ndarray | sp.csr_matrix) -> sp.csr_matrix:
    """The non-zero values of `block [n, G]` (float32) as CSR with sorted int32 columns; CSR is returned as it is."""
    if not isinstance(block, np.ndarray):
        return sp.csr_matrix(block)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(block, axis=1))])
    data = np.empty(indptr[-1], dtype=block.dtype)
    indices = np.empty(indptr[-1], dtype=np.int32)
    for row, start, end in zip(block, indptr[:-1], indptr[1:], strict=True):
        columns = np.flatnonzero(row)
        indices[start:end] = columns
        np.take(row, columns, out=data[start:end])
    return sp.csr_matrix((data, indices, indptr), shape=block.shape)
