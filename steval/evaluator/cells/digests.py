"""Finding copies of cells: 64-bit digests for exact ones (`cell_kernels`), a few strong genes for those with noise added."""

import numpy as np
import scipy.sparse as sp

SKETCH_GENES = 128
"""Genes that stand for a cell when near copies are looked for: the most strongly expressed ones."""
SKETCH_CELLS = 512
"""Cells of a perturbation among which near copies are looked for."""

SKETCH_CONTROLS = 16_384
"""Control cells of a file, evenly spaced, among which the sources of predicted cells are looked for."""
NEAREST_AT_ONCE = 256

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


def control_step(num_controls: int) -> int:
    """Every how many-th control cell is sketched."""
    return max(1, -(-num_controls // SKETCH_CONTROLS))


def nearest_cells(cells: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of the nearest of many `others [N, S]` to each sketch `[n, S]`, and its Euclidean distance `[n]` float64."""
    centre = others.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved = others - centre
    squares = np.einsum("ij,ij->i", moved, moved)
    rows = np.empty(len(cells), dtype=np.int64)
    for start in range(0, len(cells), NEAREST_AT_ONCE):
        chunk = slice(start, start + NEAREST_AT_ONCE)
        rows[chunk] = np.argmin(squares[None, :] - 2 * ((cells[chunk] - centre) @ moved.T), axis=1)
    difference = cells.astype(np.float64) - others[rows]
    return rows, np.sqrt(np.einsum("ij,ij->i", difference, difference))


def nearest_distances(cells: np.ndarray, others: np.ndarray, same: bool = False) -> np.ndarray:
    """Euclidean distance of each sketch to the nearest of `others`; with `same` a cell does not count as its own neighbour."""
    first, second = cells.astype(np.float64), others.astype(np.float64)
    centre = second.mean(axis=0)
    first, second = first - centre, second - centre
    squared = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * first @ second.T
    if same:
        np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.maximum(squared.min(axis=1), 0.0))
