"""One side of a pair: the cells of a file or an AnnData by perturbation, read a group at a time, genes in the pair's order."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import GeneAlignment
from steval.data.cells.scale import sample_indices
from steval.data.files import sha256_file
from steval.errors import EvaluationError

CellSource = Any
"""What is accepted as cells: a path to an h5ad, an `anndata.AnnData`, or an open `CellFile`."""

PIECE_CELLS = 128
"""Cells read from a file at a time: bounds what a scattered group pulls in beside itself."""
SAMPLE_CELLS = 256


def open_cells(source: CellSource, name: str, label_column: str | None = None) -> tuple[CellFile, bool]:
    """A `CellFile` on `source`, and whether its X is stored dense (pdex rounds means of dense matrices differently).

    Files are read quickly by groups of equal labels in the obs column `label_column`.
    """
    if isinstance(source, str | Path):
        source = CellFile.open(Path(source))
    if isinstance(source, CellFile):
        if source.path is None:
            return source, False
        known = label_column is not None and label_column in source.obs
        codes = source.obs[label_column].astype("category").cat.codes if known else []
        return source.grouped(np.asarray(codes)), source.is_dense
    if not hasattr(source, "obs") or not hasattr(source, "X"):
        raise EvaluationError(
            f"{name}: cells are given as a path to an h5ad file, an AnnData or a CellFile; got {type(source).__name__}"
        )
    cells = CellFile.wrap(source, name)
    return cells, cells.is_dense


def few_cells(cells: CellFile) -> CellFile:
    """Evenly spaced cells in memory, enough to tell the scale of all."""
    import anndata as ad

    rows = sample_indices(cells.num_cells, SAMPLE_CELLS)
    pieces = [cells.rows(rows[start : start + 16]) for start in range(0, len(rows), 16)]
    obs = pd.DataFrame(index=pd.Index(rows.astype(str)))
    sample = ad.AnnData(sp.csr_matrix(sp.vstack(pieces, format="csr")), obs=obs, uns=cells.uns)
    return CellFile.wrap(sample, cells.name)


@dataclass(frozen=True)
class CellSide:
    """Cells of one side. `groups` maps each perturbation (control included) to its row numbers in file order."""

    name: str
    """`predicted` or `real`, for messages."""
    cells: CellFile
    groups: dict[str, np.ndarray]
    alignment: GeneAlignment
    dense: bool
    """Whether X is stored as a dense matrix."""
    subset: str = ""
    """What the rows were restricted to (a cell type); part of the cache key."""
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)
    computed: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was computed of this side already, by what was needed: scoring several predictions reads the real side once."""

    @property
    def num_cells(self) -> int:
        """Cells in all groups."""
        return sum(len(rows) for rows in self.groups.values())

    @property
    def group_sizes(self) -> dict[str, int]:
        """Cells of each perturbation."""
        return {name: len(rows) for name, rows in self.groups.items()}

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The cells of `group` in file order, at most `size` at a time: CSR `[n, G]` float32 or float64, lognorm."""
        rows = self.groups[group]
        for start in range(0, len(rows), size):
            yield _float(self.alignment.apply(self.cells.rows(rows[start : start + size], dtype=None)))

    def matrix(self, group: str) -> sp.csr_matrix:
        """All cells of `group`, CSR `[n, G]`, genes in the pair's order; float32, or float64 where the file holds that."""
        pieces = list(self.pieces(group))
        return pieces[0] if len(pieces) == 1 else sp.csr_matrix(sp.vstack(pieces, format="csr"))

    def embedding(self, key: str, group: str) -> np.ndarray:
        """`obsm[key]` of the cells of `group`, `[n, D]`."""
        return self.cells.obsm(key, self.groups[group])

    def restricted(self, keep: np.ndarray, subset: str) -> "CellSide":
        """The same side with only the rows where the mask `keep [num rows of the file]` holds."""
        groups = {name: rows[keep[rows]] for name, rows in self.groups.items()}
        present = {name: rows for name, rows in groups.items() if len(rows)}
        return replace(self, groups=present, subset=subset, _digest=self._digest, computed={})

    def regrouped(self, groups: dict[str, np.ndarray], subset: str) -> "CellSide":
        """The same file with other row numbers for each group; `subset` must name the choice of rows uniquely."""
        return replace(self, groups=dict(sorted(groups.items())), subset=subset, _digest=self._digest, computed={})

    def digest(self) -> str:
        """sha256 of the content: the file's bytes, or X, labels and genes of cells in memory."""
        if not self._digest:
            path = Path(self.cells.name)
            self._digest.append(sha256_file(path) if path.is_file() else _memory_digest(self))
        return self._digest[0]


def _memory_digest(side: CellSide) -> str:
    digest = hashlib.sha256("\0".join(side.cells.genes).encode())
    for _, block in side.cells.blocks(dtype=None):
        for part in (block.data, block.indices, block.indptr):
            digest.update(_bytes(part))
    for key in side.cells.obsm_keys:
        digest.update(_bytes(side.cells.obsm(key, np.arange(side.cells.num_cells))))
    for group, rows in side.groups.items():
        digest.update(group.encode())
        digest.update(_bytes(rows.astype(np.int64)))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _float(matrix: sp.csr_matrix) -> sp.csr_matrix:
    if matrix.dtype in (np.float32, np.float64):
        return matrix
    return matrix.astype(np.float32 if matrix.dtype == np.float16 else np.float64)


def group_rows(labels: pd.Series) -> dict[str, np.ndarray]:
    """Row numbers of each label, ascending, keyed by label in sorted order."""
    codes, names = pd.factorize(labels.astype(str).to_numpy(), sort=True)
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {str(name): order[edges[i] : edges[i + 1]] for i, name in enumerate(names)}
