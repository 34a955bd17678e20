"""One side of a pair, read a perturbation at a time: what any cells offer (`Cells`), and those of a file or an AnnData."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import GeneAlignment
from steval.data.cells.scale import sample_indices
from steval.data.files import sha256_file
from steval.data.labels import label_codes
from steval.errors import DataError, EvaluationError

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
            return source, source.is_dense
        known = label_column is not None and label_column in source.obs
        codes = label_codes(source.obs[label_column])[1] if known else np.empty(0)
        return source.grouped(codes), source.is_dense
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


class Cells(Protocol):
    """Cells of one side by perturbation: what metrics, checks and reports read, whether stored or made while they are read."""

    @property
    def name(self) -> str:
        """`predicted`, `real` or what made them, for messages."""
        ...

    @property
    def groups(self) -> Mapping[str, np.ndarray]:
        """Each perturbation, control included and in sorted order, with a number for each of its cells."""
        ...

    @property
    def num_genes(self) -> int: ...

    @property
    def dense(self) -> bool:
        """Whether X is stored as a dense matrix, whose means pdex rounds differently."""
        ...

    @property
    def is_read_twice(self) -> bool:
        """Whether reading a group piece by piece, and then again, is cheaper than keeping it in memory."""
        ...

    @property
    def tables(self) -> dict[Any, Any]:
        """What was computed of these cells already, by what was needed: several predictions read the real side once."""
        ...

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The cells of `group` in order, about `size` at a time: CSR `[n, G]` float32 or float64, genes in the pair's order."""
        ...

    def embedding(self, key: str, group: str) -> np.ndarray:
        """`obsm[key]` of the cells of `group`, `[n, D]`; an `EvaluationError` or `DataError` where there is none."""
        ...


def whole_group(cells: Cells, group: str) -> sp.csr_matrix:
    """All cells of `group`, CSR `[n, G]`, genes in the pair's order; float32, or float64 where the file holds that."""
    pieces = list(cells.pieces(group))
    return pieces[0] if len(pieces) == 1 else sp.csr_matrix(sp.vstack(pieces, format="csr"))


class StoredCells:
    """Cells of a file or an AnnData; `groups` maps each perturbation (control included) to its row numbers in file order."""

    is_read_twice = True

    def __init__(
        self,
        name: str,
        file: CellFile,
        groups: Mapping[str, np.ndarray],
        alignment: GeneAlignment,
        dense: bool,
        subset: str = "",
        whole: "StoredCells | None" = None,
    ):
        self.name = name
        self.file = file
        self.groups = dict(groups)
        self.alignment = alignment
        self.dense = dense
        self.subset = subset
        """What the rows were restricted to (a cell type); part of the cache key."""
        self.tables: dict[Any, Any] = {}
        self._whole = whole
        self._digest: str | None = None

    @property
    def num_cells(self) -> int:
        """Cells in all groups."""
        return sum(len(rows) for rows in self.groups.values())

    @property
    def num_genes(self) -> int:
        return len(self.alignment.target)

    def pieces(self, group: str, size: int = PIECE_CELLS) -> Iterator[sp.csr_matrix]:
        """The cells of `group` in file order; see `Cells`."""
        rows = self.groups[group]
        for start in range(0, len(rows), size):
            yield _float(self.alignment.apply(self.file.rows(rows[start : start + size], dtype=None)))

    def embedding(self, key: str, group: str) -> np.ndarray:
        """`obsm[key]` of the cells of `group`, `[n, D]`."""
        return self.file.obsm(key, self.groups[group])

    def restricted(self, keep: np.ndarray, subset: str) -> "StoredCells":
        """The same cells with only the rows where the mask `keep [num rows of the file]` holds."""
        groups = {name: rows[keep[rows]] for name, rows in self.groups.items()}
        return self.regrouped({name: rows for name, rows in groups.items() if len(rows)}, subset)

    def regrouped(self, groups: Mapping[str, np.ndarray], subset: str) -> "StoredCells":
        """The same file with other row numbers for each group; `subset` must name the choice of rows uniquely."""
        ordered = dict(sorted(groups.items()))
        return StoredCells(self.name, self.file, ordered, self.alignment, self.dense, subset, self._whole or self)

    def digest(self) -> str:
        """sha256 of the content: the file's bytes, or X, labels and genes of cells in memory."""
        if self._whole is not None:
            return self._whole.digest()
        if self._digest is None:
            path = self.file.path
            self._digest = _memory_digest(self) if path is None else sha256_file(path)
        return self._digest


def _memory_digest(cells: StoredCells) -> str:
    digest = hashlib.sha256("\0".join(cells.file.genes).encode())
    for _, block in cells.file.blocks(dtype=None):
        for part in (block.data, block.indices, block.indptr):
            digest.update(_bytes(part))
    for key in cells.file.obsm_keys:
        try:
            digest.update(_bytes(cells.file.obsm(key, np.arange(cells.file.num_cells))))
        except DataError:
            continue  # text and the like: no metric can read it
    for group, rows in cells.groups.items():
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
    """Row numbers of each label, ascending, keyed by label in sorted order; rows without a label are in no group."""
    names, codes = label_codes(labels)
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(names) + 1))
    groups = {name: order[edges[code] : edges[code + 1]] for code, name in enumerate(names)}
    return {name: rows for name, rows in sorted(groups.items()) if len(rows)}


def cell_types(cells: StoredCells, column: str) -> np.ndarray:
    """Cell type of every row of the file, text `[num rows]` (object); blank where it has none."""
    names, codes = label_codes(cells.file.obs[column])
    return np.array([*names, ""], dtype=object)[codes]
