"""What the integrity checks measure of one side's cells, gathered in one pass."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steval.evaluator.cells import CellSide
from steval.evaluator.digests import SKETCH_CELLS, RowDigester, sketch

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Total of expm1 of each cell `[n]`."""
    spread: np.ndarray
    """Squared distance of each cell to the group's mean, summed over genes `[n]`; empty for the control."""
    digests: np.ndarray
    """Digest of each cell, uint64 `[n]`."""
    sketch: np.ndarray
    """The first cells by their sketch genes, float32 `[m, S]`; empty for the control."""


@dataclass(frozen=True)
class SideEvidence:
    """All groups of one side."""

    control: str
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


def gather_evidence(side: CellSide, control: str, sketched: np.ndarray) -> SideEvidence:
    """Read every group of `side` once; the control in pieces, so that memory holds one perturbation at a time.

    `sketched`: the columns kept of each perturbed cell, see `digests`.
    """
    digester = RowDigester(len(side.alignment.target))
    return SideEvidence(
        control, {name: _of_group(side, name, digester, None if name == control else sketched) for name in side.groups}
    )


def _of_group(side: CellSide, name: str, digester: RowDigester, sketched: np.ndarray | None) -> GroupEvidence:
    streamed = sketched is None
    num_genes = len(side.alignment.target)
    total, squares = np.zeros(num_genes), np.zeros(num_genes)
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("totals", "norms", "digests")}
    pieces = side.pieces(name, PIECE_CELLS) if streamed else list(side.pieces(name, PIECE_CELLS))
    for piece in pieces:
        values = piece.data.astype(np.float64)
        total += np.bincount(piece.indices, values, num_genes)
        squared = values * values
        squares += np.bincount(piece.indices, squared, num_genes)
        parts["norms"].append(_row_sums(squared, piece.indptr))
        parts["totals"].append(_row_sums(np.expm1(values), piece.indptr))
        parts["digests"].append(digester.digest(piece))
    joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    num = len(joined["norms"])
    mean = total / num
    variance = np.maximum(squares - num * mean**2, 0.0) / max(num - 1, 1)
    return GroupEvidence(
        num_cells=num,
        mean=mean.astype(np.float32),
        variance=variance.astype(np.float32),
        totals=joined["totals"],
        spread=np.empty(0) if streamed else _distances(pieces, joined["norms"], mean),
        digests=joined["digests"],
        sketch=np.empty((0, 0), np.float32) if sketched is None else _sketch(pieces, sketched),
    )


def _distances(pieces: "Iterable[sp.csr_matrix]", norms: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Squared distance of each cell to `mean`."""
    products = np.concatenate([np.asarray(piece @ mean).ravel() for piece in pieces])
    return np.maximum(norms - 2 * products + mean @ mean, 0.0)


def _sketch(pieces: "Iterable[sp.csr_matrix]", genes: np.ndarray) -> np.ndarray:
    return np.concatenate([sketch(piece, genes) for piece in pieces])[:SKETCH_CELLS]


def _row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    running = np.concatenate([[0.0], np.cumsum(values)])
    return running[indptr[1:]] - running[indptr[:-1]]
