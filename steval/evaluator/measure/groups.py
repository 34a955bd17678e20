"""The cells of one perturbation turned gene-major in one reading: what ranks, means and distances are computed from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
import scipy.sparse as sp

from steval.data.cells.scale import LARGEST_LOGNORM
from steval.errors import EvaluationError
from steval.evaluator.cells.sides import Cells
from steval.evaluator.measure.rank_kernels import add_cells, back_transform, count_values


@dataclass(frozen=True)
class Group:
    """One perturbation's cells, gene-major. Lognorm; float32, or float64 where the file holds that."""

    name: str
    num_cells: int
    starts: np.ndarray
    """`[G + 1]`: the non-zeros of gene g are `values[starts[g]:starts[g + 1]]`, in cell order."""
    values: np.ndarray
    mean: np.ndarray
    """Mean expression `[G]` float64, lognorm."""
    natural_mean: np.ndarray
    """expm1 of the mean `[G]`, added up in the data's own precision as scipy and numpy do: pdex's `target_mean`."""
    matrix: sp.csr_matrix | None
    """The cells as CSR `[n, G]`, where asked for."""


STREAMED_CELLS = 4096
"""Groups of more cells are read twice, piece by piece, so that their CSR form is never in memory as a whole."""


def read_group(side: Cells, name: str, lock: Lock, keep_matrix: bool = False) -> Group:
    """Read the cells of `name` and turn them; values that cannot be lognorm are an `EvaluationError`."""
    num_cells = len(side.groups[name])
    if side.is_read_twice and num_cells > STREAMED_CELLS and not keep_matrix:
        return _turned(side, name, lambda: locked(side.pieces(name), lock), None)
    with lock:
        pieces = list(side.pieces(name))
    matrix = sp.csr_matrix(sp.vstack(pieces, format="csr")) if keep_matrix else None
    return _turned(side, name, lambda: pieces, matrix)


def group_of(name: str, cells: sp.csr_matrix) -> Group:
    """`cells` (CSR `[n, G]`, lognorm) of memory as a group; as of a file whose X is stored sparse."""
    counts = np.zeros(cells.shape[1], dtype=np.int64)
    count_values(cells.indices, cells.data, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = np.empty(starts[-1], dtype=cells.dtype)
    sums, scaled = np.zeros(len(counts)), np.zeros(len(counts), dtype=cells.dtype)
    factor = cells.dtype.type(1.0 / cells.shape[0])
    add_cells(cells.indptr, cells.indices, cells.data, factor, starts[:-1].copy(), values, sums, scaled)
    return Group(name, cells.shape[0], starts, values, sums / cells.shape[0], back_transform(scaled), None)


def _turned(side: Cells, name: str, read: Callable[[], Iterable[sp.csr_matrix]], matrix: sp.csr_matrix | None) -> Group:
    """The group gene-major; `read` gives the same pieces each time it is called."""
    num_cells = len(side.groups[name])
    counts, dtype = np.zeros(0, dtype=np.int64), np.dtype(np.float32)
    for piece in read():
        if not len(counts):
            counts = np.zeros(piece.shape[1], dtype=np.int64)
        count_values(piece.indices, piece.data, counts)
        dtype = np.promote_types(dtype, piece.dtype)
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = np.empty(starts[-1], dtype=dtype)
    sums, scaled = np.zeros(len(counts)), np.zeros(len(counts), dtype=dtype)
    factor = dtype.type(1.0 if side.dense else 1.0 / num_cells)
    next_place = starts[:-1].copy()
    for piece in read():
        bounds = add_cells(piece.indptr, piece.indices, piece.data, factor, next_place, values, sums, scaled)
        _require_lognorm(side.name, name, *bounds)
    mean = scaled / dtype.type(num_cells) if side.dense else scaled
    return Group(name, num_cells, starts, values, sums / num_cells, back_transform(mean), matrix)


def locked(pieces: Iterator[sp.csr_matrix], lock: Lock) -> Iterator[sp.csr_matrix]:
    """`pieces`, each read under the lock."""
    while True:
        with lock:
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def _require_lognorm(side: str, group: str, smallest: float, largest: float, finite: bool) -> None:
    if finite and smallest >= 0 and largest < LARGEST_LOGNORM:
        return
    found = "NaN or infinite values" if not finite else f"values from {smallest:.4g} to {largest:.4g}"
    raise EvaluationError(
        f"the {side} cells of {group} hold {found}; lognorm values lie from 0 to under {LARGEST_LOGNORM:g}. Counts are made "
        "lognorm by steval prepare; scaled or residual data cannot be scored"
    )
