"""Cells seen in another way as they are read: with the measured controls in place of their own, and counts as lognorm."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.evaluator.cells.sides import PIECE_CELLS, Cells

if TYPE_CHECKING:
    from steval.evaluator.cells.pair import Pair

LOGNORM_TOTAL = 10_000.0
"""Total that counts are brought to where checks compare them as lognorm."""


class MeasuredControls:
    """Predicted cells with the measured control cells in place of their own (see `Cells`)."""

    is_read_twice = False

    def __init__(self, cells: Cells, real: Cells, control: str):
        self._cells, self._real, self._control = cells, real, control
        self.name, self.num_genes, self.dense = cells.name, cells.num_genes, cells.dense
        self.groups = dict(sorted({**cells.groups, control: real.groups[control]}.items()))
        self.tables: dict[Any, Any] = {}

    def _source(self, group: str) -> Cells:
        return self._real if group == self._control else self._cells

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """Control cells come from the real side, all others from the prediction."""
        return self._source(group).pieces(group, size)

    def embedding(self, key: str, group: str) -> np.ndarray:
        """Likewise."""
        return self._source(group).embedding(key, group)


class CountsAsLognorm:
    """Cells of counts, read as lognorm (see `Cells`); remembers how many counts each cell has."""

    def __init__(self, cells: Cells):
        self._cells = cells
        self.name, self.groups = cells.name, cells.groups
        self.num_genes, self.dense, self.is_read_twice = cells.num_genes, cells.dense, cells.is_read_twice
        self.tables: dict[Any, Any] = {}
        self.totals: dict[str, np.ndarray] = {}
        """Counts of each cell `[n]` of the groups that were read to their end."""

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The cells of `group`, lognorm to `LOGNORM_TOTAL`."""
        totals = []
        for piece in self._cells.pieces(group, size):
            totals.append(np.asarray(piece.sum(axis=1, dtype=np.float64)).ravel())
            yield lognorm(piece, LOGNORM_TOTAL)
        self.totals[group] = np.concatenate(totals)

    def embedding(self, key: str, group: str) -> np.ndarray:
        """As it is stored."""
        return self._cells.embedding(key, group)


def seen_as_lognorm(pair: "Pair") -> tuple[Cells, Cells]:
    """Both sides of a pair as the checks compare them: counts as lognorm, the prediction with the measured controls."""
    if pair.scale_real.scale != "counts":
        return pair.pred, pair.real
    measured = MeasuredControls(pair.pred, pair.real, pair.control)
    return CountsAsLognorm(measured), CountsAsLognorm(pair.real)
