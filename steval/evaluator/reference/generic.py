"""The lower end of the replicate scale: measured control cells that all carry one and the same generic response.

cell-eval2 0.20.0's baseline. The response is the mean of the evaluated perturbations' mean counts (each perturbation's own gene
left out of it), over the controls' mean counts, gene by gene; a perturbation's cells are control cells drawn with replacement
and multiplied by it. It knows the evaluated cells, so it cannot be handed in: it is an end of a scale, not a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.errors import EvaluationError
from steval.evaluator.cells.sides import PIECE_CELLS, Cells

SEED = 0


@dataclass(eq=False)
class GenericCells:
    """Control cells × response, made as they are read (see `Cells`); the counts are fractions."""

    side: Cells
    control: str
    response: np.ndarray
    """`[G]`."""
    groups: Mapping[str, np.ndarray]
    """Each perturbation with the numbers of the control cells drawn for it."""
    name: str = "generic response"
    dense: bool = False
    is_read_twice: bool = True
    tables: dict[Any, Any] = field(default_factory=dict)
    _controls: sp.csr_matrix | None = None

    @property
    def num_genes(self) -> int:
        return self.side.num_genes

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The cells of a perturbation in the order in which they were drawn."""
        drawn = self.groups[group]
        for start in range(0, len(drawn), size):
            cells = self._pool()[drawn[start : start + size]]
            scaled = (cells.data * self.response[cells.indices]).astype(np.float32)
            yield sp.csr_matrix((scaled, cells.indices, cells.indptr), shape=cells.shape)

    def embedding(self, key: str, group: str) -> np.ndarray:
        """There is none."""
        raise EvaluationError(f"the {self.name} has no embedding {key!r}")

    def _pool(self) -> sp.csr_matrix:
        if self._controls is None:
            self._controls = sp.csr_matrix(sp.vstack(list(self.side.pieces(self.control)), format="csr"))
        return self._controls


def generic_cells(
    side: Cells,
    control: str,
    mean_counts: np.ndarray,
    control_mean: np.ndarray,
    own_gene: np.ndarray,
    num_cells: np.ndarray,
) -> GenericCells:
    """The generic response of the perturbations of `side` whose mean counts are `mean_counts [P, G]` (rows sorted by name).

    `control_mean [G]`; `own_gene [P]`: the place of each perturbation's own gene, -1 for none; `num_cells [P]`.
    """
    total = mean_counts.sum(axis=0)
    contributing = np.full(mean_counts.shape[1], float(len(mean_counts)))
    rows = np.flatnonzero(own_gene >= 0)
    np.subtract.at(total, own_gene[rows], mean_counts[rows, own_gene[rows]])
    np.subtract.at(contributing, own_gene[rows], 1.0)
    if (contributing <= 0).any():
        raise EvaluationError(
            "a gene is the own gene of all perturbations, so a generic response of it cannot be told; at least two perturbations "
            "of different genes are needed"
        )
    response = np.divide(total / contributing, control_mean, out=np.zeros(len(total)), where=control_mean > 0)
    generator = np.random.default_rng(SEED)
    names = [name for name in side.groups if name != control]
    num_controls = len(side.groups[control])
    groups = {
        name: generator.integers(0, num_controls, size=int(num)) for name, num in zip(names, num_cells, strict=True)
    }
    return GenericCells(side, control, response, groups)
