"""Finding copies of cells: 64-bit digests for exact ones, a few strongly expressed genes for those with noise added."""

import numpy as np
import scipy.sparse as sp

SKETCH_GENES = 128
"""Genes that stand for a cell when near copies are looked for: the most strongly expressed ones."""
SKETCH_CELLS = 512
"""Cells of a perturbation among which near copies are looked for."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_TABLE_SEED = 20251


class RowDigester:
    """Digests of rows over `num_genes` columns; equal rows have equal digests whatever their storage."""

    def __init__(self, num_genes: int):
        generator = np.random.default_rng(_TABLE_SEED)
        self._table = generator.integers(0, 2**63, size=num_genes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def digest(self, matrix: sp.csr_matrix) -> np.ndarray:
        """Digests, uint64 `[n]`, of CSR rows `[n, G]`; values are compared as float32."""
        values = np.ascontiguousarray(matrix.data, dtype=np.float32)
        keys = self._table[matrix.indices]
        mixed = (values.view(np.uint32).astype(np.uint64) + keys) * _MIX
        mixed ^= mixed >> _SHIFT
        mixed *= keys
        return _row_sums(np.where(values != 0, mixed, np.uint64(0)), matrix.indptr)


def _row_sums(terms: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sums of `terms` over CSR rows, modulo 2^64."""
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return running[indptr[1:]] - running[indptr[:-1]]


def sketch_genes(mean: np.ndarray) -> np.ndarray:
    """Columns of the most strongly expressed genes of a mean profile `[G]`, ascending."""
    return np.sort(np.argsort(-mean, kind="stable")[:SKETCH_GENES])


def sketch(matrix: sp.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """Expression of the sketch genes, float32 `[n, S]`."""
    return np.asarray(matrix[:, genes].toarray(), dtype=np.float32)


def nearest_distances(cells: np.ndarray, others: np.ndarray, same: bool = False) -> np.ndarray:
    """Euclidean distance of each sketch to the nearest of `others`; with `same` a cell does not count as its own neighbour."""
    first, second = cells.astype(np.float64), others.astype(np.float64)
    centre = second.mean(axis=0)
    first, second = first - centre, second - centre
    squared = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * first @ second.T
    if same:
        np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.maximum(squared.min(axis=1), 0.0))
