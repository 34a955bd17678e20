"""What the integrity checks measure of one side's cells, gathered in one pass."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from steval.evaluator.cells.digests import SKETCH_CELLS, control_step, gene_keys, sketch, value_bits
from steval.evaluator.cells.kernels import measure_cells
from steval.evaluator.cells.sides import Cells
from steval.evaluator.cells.views import CountsAsLognorm

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import scipy.sparse as sp

PIECE_CELLS = 2048


@dataclass(frozen=True)
class GroupEvidence:
    """One perturbation's cells, or the control's."""

    num_cells: int
    mean: np.ndarray
    """Mean lognorm expression `[G]`, float32."""
    variance: np.ndarray
    """Variance of lognorm expression over cells `[G]`, float32 (n - 1 in the denominator; 0 for one cell)."""
    totals: np.ndarray
    """Total of expm1 of each cell `[n]`; on counts, its counts."""
    spread: np.ndarray
    """Squared distance of each cell to the group's mean, summed over genes `[n]`; empty for the control."""
    digests: np.ndarray
    """Digest of each cell, uint64 `[n]`."""
    sketch: np.ndarray
    """The first cells by their sketch genes, of the control evenly spaced ones, float32 `[m, S]`."""


@dataclass(frozen=True)
class SideEvidence:
    """All groups of one side."""

    control: str
    sketched: np.ndarray
    """Columns of the sketch genes."""
    groups: dict[str, GroupEvidence]

    @property
    def perturbations(self) -> list[str]:
        """Names without the control, sorted."""
        return [name for name in self.groups if name != self.control]

    def effects(self) -> np.ndarray:
        """Mean change from the side's own control `[P, G]`."""
        base = self.groups[self.control].mean
        return np.stack([self.groups[name].mean - base for name in self.perturbations])

    def gather(self, field: str) -> np.ndarray:
        """A field of all perturbations, stacked or joined."""
        return np.concatenate([np.atleast_1d(getattr(self.groups[name], field)) for name in self.perturbations])


def gather_evidence(side: Cells, control: str, sketched: np.ndarray, threads: int = 1) -> SideEvidence:
    """Read every group of `side` once; the control in pieces, so that memory holds one perturbation for each thread.

    `sketched`: the columns kept of each perturbed cell, see `digests`.
    """
    keys, lock = gene_keys(side.num_genes), Lock()

    def measure(name: str) -> GroupEvidence:
        return _of_group(side, name, keys, sketched, lock, is_control=name == control)

    with ThreadPoolExecutor(threads) as pool:
        return SideEvidence(control, sketched, dict(zip(side.groups, pool.map(measure, side.groups), strict=True)))


def _of_group(
    side: Cells,
    name: str,
    keys: np.ndarray,
    sketched: np.ndarray,
    lock: "AbstractContextManager[Any]",
    is_control: bool,
) -> GroupEvidence:
    num, num_genes = len(side.groups[name]), len(keys)
    total, squares = np.zeros(num_genes), np.zeros(num_genes)
    totals, norms, digests = np.empty(num), np.empty(num), np.empty(num, dtype=np.uint64)
    pieces: Iterable[sp.csr_matrix] = side.pieces(name, PIECE_CELLS)
    if not is_control:
        with lock:
            pieces = list(pieces)
    start, step, most = 0, control_step(num) if is_control else 1, num if is_control else SKETCH_CELLS
    sketches = []
    for piece in pieces:
        if start < most:
            sketches.append(sketch(piece[-start % step :: step], sketched))
        chunk = slice(start, start + piece.shape[0])
        start = chunk.stop
        outputs = (totals[chunk], norms[chunk], digests[chunk])
        measure_cells(piece.indptr, piece.indices, piece.data, value_bits(piece), keys, total, squares, *outputs)
    if isinstance(side, CountsAsLognorm):
        totals = side.totals[name]
    mean = total / num
    variance = np.maximum(squares - num * mean**2, 0.0) / max(num - 1, 1)
    return GroupEvidence(
        num_cells=num,
        mean=mean.astype(np.float32),
        variance=variance.astype(np.float32),
        totals=totals,
        spread=np.empty(0) if is_control else _distances(pieces, norms, mean),
        digests=digests,
        sketch=np.concatenate(sketches)[:most],
    )


def _distances(pieces: "Iterable[sp.csr_matrix]", norms: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Squared distance of each cell to `mean`."""
    products = np.concatenate([np.asarray(piece @ mean).ravel() for piece in pieces])
    return np.maximum(norms - 2 * products + mean @ mean, 0.0)
