"""Cells of an h5ad file, read lazily by row number, or of an AnnData in memory: one interface whatever the storage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.obs_codes import CodedColumn, StoredTable, column_names, num_rows, read_coded, row_names
from steval.data.cells.record import read_record
from steval.data.columns import Columns
from steval.data.disk_files import new_hdf5
from steval.data.files import atomic_path, require_file
from steval.data.labels import label_text, labelled_rows
from steval.data.rows.matrix import StoredMatrix, read_element
from steval.data.rows.obsm import ObsmBlock, StoredObsm, dense_rows
from steval.data.rows.open_file import OpenFile
from steval.data.rows.row_copies import grouped_rows
from steval.data.rows.sources import (
    EmbeddedRows,
    MemoryRows,
    Rows,
    SelectedRows,
    StackedRows,
    StoredRows,
    TransformedRows,
)
from steval.data.rows.trial import require_readable_structure
from steval.data.rows.unreadable import reading
from steval.errors import DataError
from steval.wording import counted


class CellFile:
    """Cells × genes, opened lazily from an h5ad or wrapped around an AnnData; use as a context manager.

    `obs` and gene names are in memory, X stays on disk (CSR and dense layouts; CSC is turned into CSR in memory once).
    X comes in canonical form: a place that is stored twice is added up, a stored zero is none (`rows.csr`).

        with CellFile.open(path) as cells:                 # opens the file; nobody above `data` needs h5py
            cells = cells.grouped(codes)                   # quick for groups of equal codes, wherever their rows lie
            matrix = cells.rows(indices, dtype=None)       # CSR [n, G] in the stored precision

    Selections, other gene contracts and scales are views on the same file (`select`, `transformed`, `embedded`, `stack`).
    """

    def __init__(
        self, source: Rows, obs: pd.DataFrame, genes: Sequence[str], uns: dict[str, Any], name: str,
        *, var: pd.DataFrame | None = None, path: Path | None = None, is_dense: bool = False,
        table: StoredTable | None = None,
    ):  # fmt: skip
        self._source = source
        self._table = table
        self.obs = obs
        self.genes = list(genes)
        """Their names; blank where a gene has none, which is an error as soon as genes are told apart by name."""
        self.uns = uns
        self.name = name
        self.origin = name
        """The file behind a selection of its cells."""
        self.path = path
        """The file, where these are all of its cells and genes in its order; none for views and for cells in memory."""
        self.is_dense = is_dense
        """Whether X is stored as a dense matrix (cell-eval rounds means of such differently)."""
        self.var = pd.DataFrame(index=pd.Index(self.genes)) if var is None else var
        self.record = read_record(uns)
        """The file's own declaration, `uns["steval"]`; empty where it has none."""

    @classmethod
    def open(cls, path: Path, *, with_obs: bool = True) -> Self:
        """Open an h5ad file; a missing, truncated or other file is a `DataError` with one clear line.

        Without `with_obs` the columns of obs are left unread: `obs` has a row per cell and no column.
        """
        file = OpenFile(require_file(path, "data file"))
        require_readable_structure(file.path)
        try:
            with reading(f"{path} cannot be read as AnnData"):
                return cls._opened(file, with_obs)
        except DataError:
            file.close()
            raise

    @classmethod
    def _opened(cls, file: OpenFile, with_obs: bool) -> Self:
        handle, path = file.handle, file.path
        _require_elements(handle, path)
        matrix = StoredMatrix(file)
        if isinstance(handle["obs"], h5py.Dataset) or isinstance(handle["var"], h5py.Dataset):
            return cls._of_old_tables(matrix, path)
        obs = read_element(handle["obs"]) if with_obs else pd.DataFrame(index=pd.RangeIndex(num_rows(handle["obs"])))
        var = read_element(handle["var"])
        uns = dict(read_element(handle["uns"])) if "uns" in handle else {}
        _require_shape(matrix.shape, len(obs), len(var), path)
        return cls(
            StoredRows(matrix, StoredObsm(file)), obs, [label_text(gene) for gene in var.index], uns, str(path),
            var=var, path=path, is_dense=matrix.layout == "dense", table=handle["obs"],
        )  # fmt: skip

    @classmethod
    def _of_old_tables(cls, matrix: StoredMatrix, path: Path) -> Self:
        """A file of AnnData before 0.7, whose obs and var are compound tables: anndata reads all but X."""
        require_readable_structure(path, whole=True)
        backed = ad.read_h5ad(path, backed="r")
        try:
            obs, var = pd.DataFrame(backed.obs), pd.DataFrame(backed.var)
            uns, obsm = dict(backed.uns), dict(backed.obsm)
        finally:
            backed.file.close()
        _require_shape(matrix.shape, len(obs), len(var), path)
        return cls(
            StoredRows(matrix, obsm), obs, [label_text(gene) for gene in var.index], uns, str(path),
            var=var, path=path, is_dense=matrix.layout == "dense", table=obs,
        )  # fmt: skip

    @classmethod
    def wrap(cls, adata: ad.AnnData, name: str = "the data") -> Self:
        """The same interface on an AnnData in memory, which is left as it is."""
        matrix: Any = adata.X
        if matrix is None:
            raise DataError(no_matrix(name, list(adata.layers)))
        if hasattr(matrix, "to_memory"):  # of a file that anndata has open
            matrix = matrix.to_memory()
        obs = pd.DataFrame(adata.obs)
        return cls(
            MemoryRows(matrix, dict(adata.obsm), name), obs, [label_text(gene) for gene in adata.var_names], dict(adata.uns), name,
            var=pd.DataFrame(adata.var), is_dense=not sp.issparse(matrix), table=obs,
        )  # fmt: skip

    @classmethod
    def of_matrix(cls, matrix: sp.csr_matrix, obs: pd.DataFrame, genes: Sequence[str], name: str) -> Self:
        """Cells in memory that come from no file: `matrix [n, G]` with a row of `obs` each."""
        return cls(MemoryRows(matrix, {}, name), obs, genes, {}, name, table=obs)

    def select(self, indices: np.ndarray) -> Self:
        """The cells `indices [n]` as a CellFile of their own, read from the same open file."""
        indices = np.asarray(indices, dtype=np.int64)
        name = f"{self.name} ({len(indices)} of {counted(self.num_cells, 'cell')})"
        return self._view(
            SelectedRows(self._source, indices), self.genes, name, obs=self.obs.iloc[indices], var=self.var
        )

    def labelled(self, columns: Columns, *fields: str) -> Self:
        """The cells that have a label in each of these columns (`"perturbation"`, `"cell_type"`, `"batch"`, where there is one).

        Cells that lack one are a `DataError`, or left out where `columns.drop_unlabelled` says so (see `data.labels`).
        """
        used = [str(name) for field in fields if (name := getattr(columns, field)) is not None]
        rows = labelled_rows(self.obs, used, self.name, drop=columns.drop_unlabelled)
        if rows is None:
            return self
        view = self.select(rows)
        view.name = self.name
        return view

    def transformed(
        self, transform: Callable[[sp.csr_matrix], sp.csr_matrix], genes: Sequence[str], uns: dict[str, Any], name: str
    ) -> Self:
        """The same cells with `transform` applied to every block of rows that is read: other genes, another scale.

        `name` must differ from the file's path, since the content does.
        """
        return self._view(TransformedRows(self._source, transform, len(genes)), genes, name, uns=uns)

    def embedded(self, key: str, name: str) -> Self:
        """The same cells with the obsm matrix `key` in place of X; its columns are named by number."""
        self._require_obsm(key)
        source = EmbeddedRows(self._source, key, self.name)
        return self._view(source, [f"{key}_{number}" for number in range(source.shape[1])], name)

    def grouped(self, codes: np.ndarray) -> Self:
        """The same cells, quick to read by groups of equal `codes [n]` wherever the rows of a group lie in the file.

        Plain bytes are read where they are. Compressed rows that lie scattered, and CSC, which has no rows, are first
        copied by rows to a temporary file (removed by `close`), so that nothing is unpacked more than once.
        """
        if isinstance(self._source, StoredRows):
            self._source = grouped_rows(self._source, codes)
        return self

    @classmethod
    def stack(cls, parts: "Sequence[CellFile]", name: str = "the data") -> Self:
        """Cells of several files with the same genes in the same order, one file after the other."""
        if any(part.genes != parts[0].genes for part in parts):
            raise DataError(f"{name}: the files have different genes; make them alike with steval prepare --genes")
        obs = pd.concat([part.obs for part in parts], join="inner")
        return cls(StackedRows([part._source for part in parts]), obs, parts[0].genes, parts[0].uns, name, table=obs)

    @property
    def num_cells(self) -> int:
        return len(self.obs)

    @property
    def obsm_keys(self) -> list[str]:
        return self._source.obsm_keys

    def rows(self, indices: np.ndarray | Sequence[int], dtype: Any = np.float32) -> sp.csr_matrix:
        """X of the cells `indices [n]` in that order, canonical CSR `[n, G]`; `dtype` None keeps the stored precision."""
        matrix = self._source.rows(np.asarray(indices, dtype=np.int64))
        if dtype is not None and matrix.dtype != dtype:
            with np.errstate(over="ignore"):  # what becomes infinite is refused as such, where it is used
                matrix = matrix.astype(dtype)
        return matrix

    def blocks(self, size: int = 4096, dtype: Any = np.float32) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """All cells in file order, `size` at a time: row numbers and CSR."""
        for start in range(0, self.num_cells, size):
            indices = np.arange(start, min(start + size, self.num_cells))
            yield indices, self.rows(indices, dtype)

    def obsm(self, key: str, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows of an `obsm` matrix, float32 `[n, D]`; a key that is not there is a `DataError` that lists those that are.

        Sparse matrices and tables of numbers are made dense; text is a `DataError`.
        """
        return dense_rows(self.obsm_block(key, indices), f"obsm[{key!r}] of {self.name}")

    def obsm_block(self, key: str, indices: np.ndarray | Sequence[int]) -> ObsmBlock:
        """As `obsm`, but in the kind that is stored: an array, a sparse matrix or a table, text included."""
        self._require_obsm(key)
        return self._source.obsm(key, np.asarray(indices, dtype=np.int64))

    def column_names(self) -> list[str]:
        """Names of the obs columns, also where they are left unread."""
        with self._reading_obs():
            return column_names(self._labels())

    def coded(self, column: str) -> CodedColumn:
        """An obs column as codes, without a string per cell in memory; -1 for a cell without a label."""
        with self._reading_obs(column):
            found = read_coded(self._labels(), column)
        if len(found.codes) != self.num_cells:
            raise DataError(
                f"{self.name} is damaged: obs column {column!r} has {counted(len(found.codes), 'value')} for "
                f"{counted(self.num_cells, 'cell')}"
            )
        return found

    def row_names(self) -> Iterator[np.ndarray]:
        """Names of the cells, as blocks of text."""
        with self._reading_obs():
            yield from row_names(self._labels())

    def close(self) -> None:
        """Close the file; the object cannot be read afterwards."""
        self._source.close()

    def _view(
        self, source: Rows, genes: Sequence[str], name: str, *, obs: pd.DataFrame | None = None,
        uns: dict[str, Any] | None = None, var: pd.DataFrame | None = None,
    ) -> Self:  # fmt: skip
        table = self._labels() if obs is None else obs
        view = type(self)(
            source,
            self.obs if obs is None else obs,
            genes,
            self.uns if uns is None else uns,
            name,
            var=var,
            table=table,
        )
        view.origin = self.origin
        return view

    def _labels(self) -> StoredTable:
        return self.obs if self._table is None else self._table

    def _reading_obs(self, column: str | None = None) -> AbstractContextManager[None]:
        part = "obs" if column is None else f"obs column {column!r}"
        return reading(f"{self.name} is damaged: {part} cannot be read")

    def _require_obsm(self, key: str) -> None:
        if key not in self.obsm_keys:
            raise DataError(f"{self.name} has no obsm matrix {key!r}; it has: {', '.join(self.obsm_keys) or '(none)'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_anndata(path: Path) -> ad.AnnData:
    """A whole h5ad in memory; a missing, truncated or other file is a `DataError`."""
    with CellFile.open(path):
        require_readable_structure(path, whole=True)
    with reading(f"{path} cannot be read as AnnData"):
        return ad.read_h5ad(path)


def write_anndata(adata: ad.AnnData, path: Path, compression: Literal["gzip", "lzf"] | None = "gzip") -> None:
    """Write an h5ad atomically."""
    with atomic_path(path) as partial, new_hdf5(partial) as handle:
        ad.io.write_elem(handle, "/", adata, dataset_kwargs={"compression": compression})


def no_matrix(name: str, layers: Sequence[str]) -> str:
    """What to say of an AnnData without X."""
    if not layers:
        return f"{name} has no X matrix: it holds no expression"
    return (
        f"{name} has no X matrix; it has the layers {', '.join(layers)}. Put the one that holds counts into X "
        f"(adata.X = adata.layers[{layers[0]!r}]) and write the file anew"
    )


def _require_elements(handle: h5py.File, path: Path) -> None:
    absent = [key for key in ("obs", "var", "X") if key not in handle]
    if absent == ["X"] or ("X" in handle and handle["X"].attrs.get("encoding-type") == "null"):
        layers = handle.get("layers")
        raise DataError(no_matrix(str(path), list(layers) if isinstance(layers, h5py.Group) else []))
    if absent:
        raise DataError(f"{path} is HDF5 but not an AnnData file: it lacks {', '.join(absent)}")


def _require_shape(shape: tuple[int, ...], num_obs: int, num_var: int, path: Path) -> None:
    if tuple(shape) != (num_obs, num_var):
        raise DataError(
            f"{path}: X is {shape[0]} × {shape[1]}, but there are {counted(num_obs, 'cell')} in obs and "
            f"{counted(num_var, 'gene')} in var"
        )
    if not num_obs:
        raise DataError(f"{path} holds no cells")
    if not num_var:
        raise DataError(f"{path} holds no genes")
