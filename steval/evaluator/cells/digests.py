"""Finding copies of cells: 64-bit digests for exact ones (`cell_kernels`), a few strong genes for those with noise added."""

import numpy as np
import scipy.sparse as sp

SKETCH_GENES = 128
"""Genes that stand for a cell when near copies are looked for: the most strongly expressed ones."""
SKETCH_CELLS = 512
"""Cells of a perturbation among which near copies are looked for."""

_TABLE_SEED = 20251


def gene_keys(num_genes: int) -> np.ndarray:
    """A random odd number for each gene, uint64 `[G]`; the same in every run."""
    generator = np.random.default_rng(_TABLE_SEED)
    return generator.integers(0, 2**63, size=num_genes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def value_bits(matrix: sp.csr_matrix) -> np.ndarray:
    """The stored values as float32, viewed as uint32."""
    return np.ascontiguousarray(matrix.data, dtype=np.float32).view(np.uint32)


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
