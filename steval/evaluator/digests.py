"""64-bit digests of cells, to find copies: exact ones, and ones of the support that survive small noise."""

import numpy as np
import scipy.sparse as sp

SUPPORT_LEVEL = 0.3
"""Lognorm values above this belong to a cell's support; one count in a cell of 20,000 scaled to 10,000 is 0.41."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_TABLE_SEED = 20251


class RowDigester:
    """Digests of rows over `num_genes` columns; equal rows have equal digests whatever their storage."""

    def __init__(self, num_genes: int):
        generator = np.random.default_rng(_TABLE_SEED)
        self._table = generator.integers(0, 2**63, size=num_genes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def digest(self, matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Exact and support digests, uint64 `[n]` each, of CSR rows `[n, G]` (values compared as float32)."""
        values = np.ascontiguousarray(matrix.data, dtype=np.float32)
        keys = self._table[matrix.indices]
        mixed = (values.view(np.uint32).astype(np.uint64) + keys) * _MIX
        mixed ^= mixed >> _SHIFT
        mixed *= keys
        exact = _row_sums(np.where(values != 0, mixed, np.uint64(0)), matrix.indptr)
        support = _row_sums(np.where(values > SUPPORT_LEVEL, keys, np.uint64(0)), matrix.indptr)
        return exact, support


def _row_sums(terms: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sums of `terms` over CSR rows, modulo 2^64."""
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return running[indptr[1:]] - running[indptr[:-1]]
