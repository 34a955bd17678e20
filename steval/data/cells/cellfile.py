"""An h5ad file read lazily: cells by row number, as CSR, whatever the layout on disk."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.obs_codes import num_rows
from steval.data.cells.record import read_record
from steval.data.files import atomic_path, require_file
from steval.data.rows.sources import (
    FileRows,
    MemoryRows,
    Rows,
    SelectedRows,
    StackedRows,
    TransformedRows,
    first_line,
    read_element,
)
from steval.errors import DataError


class CellFile:
    """Cells × genes, opened lazily from an h5ad or wrapped around an AnnData; use as a context manager.

    `obs` and gene names are in memory, X stays on disk (CSR and dense layouts; CSC is turned into CSR in memory once).
    Safe to open in several processes, not to share one object between threads.
    """

    def __init__(self, source: Rows, obs: pd.DataFrame, genes: list[str], uns: dict[str, Any], name: str):
        self._source = source
        self.obs = obs
        self.genes = genes
        self.uns = uns
        self.name = name
        self.origin = name
        """The file behind a selection of its cells."""
        self.record = read_record(uns)
        """The file's own declaration, `uns["steval"]`; empty where it has none."""

    @classmethod
    def open(cls, path: Path, *, with_obs: bool = True) -> Self:
        """Open an h5ad file; a missing, truncated or other file is a `DataError` with one clear line.

        Without `with_obs` the columns of obs are left unread: `obs` has a row per cell and no column.
        """
        path = require_file(path, "data file")
        try:
            handle = h5py.File(path, "r")
        except OSError as error:
            raise DataError(
                f"{path} is not a readable h5ad file (not HDF5, or truncated): {first_line(error)}"
            ) from error
        try:
            absent = [key for key in ("obs", "var", "X") if key not in handle]
            if absent:
                raise DataError(f"{path} is HDF5 but not an AnnData file: it lacks {', '.join(absent)}")
            obs = (
                read_element(handle["obs"]) if with_obs else pd.DataFrame(index=pd.RangeIndex(num_rows(handle["obs"])))
            )
            var = read_element(handle["var"])
            uns = read_element(handle["uns"]) if "uns" in handle else {}
            source = FileRows(handle, path)
            _require_shape(source.shape, len(obs), len(var), path)
        except DataError:
            handle.close()
            raise
        except (OSError, KeyError, ValueError, TypeError) as error:
            handle.close()
            raise DataError(f"{path} cannot be read as AnnData: {first_line(error)}") from error
        return cls(source, obs, [str(gene) for gene in var.index], dict(uns), str(path))

    @classmethod
    def wrap(cls, adata: ad.AnnData, name: str = "the data") -> Self:
        """The same interface on an AnnData in memory."""
        if adata.X is None:
            raise DataError(f"{name} has no X matrix")
        matrix = sp.csr_matrix(cast(Any, adata.X))
        source = MemoryRows(matrix, {key: np.asarray(value) for key, value in adata.obsm.items()})
        return cls(source, pd.DataFrame(adata.obs), [str(gene) for gene in adata.var_names], dict(adata.uns), name)

    def select(self, indices: np.ndarray) -> Self:
        """The cells `indices [n]` as a CellFile of their own, read from the same open file."""
        source = SelectedRows(self._source, np.asarray(indices, dtype=np.int64))
        name = f"{self.name} ({len(indices)} of {self.num_cells} cells)"
        chosen = type(self)(source, self.obs.iloc[indices], self.genes, self.uns, name)
        chosen.origin = self.origin
        return chosen

    def transformed(
        self, transform: Callable[[sp.csr_matrix], sp.csr_matrix], genes: Sequence[str], uns: dict[str, Any], name: str
    ) -> Self:
        """The same cells with `transform` applied to every block of rows that is read: other genes, another scale.

        `name` must differ from the file's path, since the content does.
        """
        return type(self)(TransformedRows(self._source, transform, len(genes)), self.obs, list(genes), uns, name)

    @classmethod
    def stack(cls, parts: "Sequence[CellFile]", name: str = "the data") -> Self:
        """Cells of several files with the same genes in the same order, one file after the other."""
        if any(part.genes != parts[0].genes for part in parts):
            raise DataError(f"{name}: the files have different genes; make them alike with steval prepare --genes")
        obs = pd.concat([part.obs for part in parts], join="inner")
        return cls(StackedRows([part._source for part in parts]), obs, parts[0].genes, parts[0].uns, name)

    @property
    def num_cells(self) -> int:
        return len(self.obs)

    @property
    def obsm_keys(self) -> list[str]:
        return self._source.obsm_keys

    def rows(self, indices: np.ndarray | Sequence[int], dtype: Any = np.float32) -> sp.csr_matrix:
        """X of the cells `indices [n]` in that order, as CSR `[n, G]` with sorted columns; `dtype` None keeps the stored one."""
        matrix = self._source.rows(np.asarray(indices, dtype=np.int64))
        if dtype is not None and matrix.dtype != dtype:
            matrix = matrix.astype(dtype)
        return matrix

    def blocks(self, size: int = 4096, dtype: Any = np.float32) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """All cells in file order, `size` at a time: row numbers and CSR."""
        for start in range(0, self.num_cells, size):
            indices = np.arange(start, min(start + size, self.num_cells))
            yield indices, self.rows(indices, dtype)

    def obsm(self, key: str, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows of an `obsm` matrix, float32 `[n, D]`; a key that is not there is a `DataError` that lists those that are."""
        if key not in self.obsm_keys:
            raise DataError(f"{self.name} has no obsm matrix {key!r}; it has: {', '.join(self.obsm_keys) or '(none)'}")
        return self._source.obsm(key, np.asarray(indices, dtype=np.int64))

    def close(self) -> None:
        """Close the file; the object cannot be read afterwards."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_anndata(path: Path) -> ad.AnnData:
    """A whole h5ad in memory; a missing, truncated or other file is a `DataError`."""
    with CellFile.open(path):
        pass
    try:
        return ad.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as AnnData: {first_line(error)}") from error


def write_anndata(adata: ad.AnnData, path: Path, compression: Literal["gzip", "lzf"] | None = "gzip") -> None:
    """Write an h5ad atomically."""
    with atomic_path(path) as partial:
        adata.write_h5ad(partial, compression=compression)


def _require_shape(shape: tuple[int, ...], num_obs: int, num_var: int, path: Path) -> None:
    if tuple(shape) != (num_obs, num_var):
        raise DataError(
            f"{path}: X is {shape[0]} × {shape[1]}, but there are {num_obs} cells in obs and {num_var} genes in var"
        )
    if not num_obs:
        raise DataError(f"{path} holds no cells")
    if not num_var:
        raise DataError(f"{path} holds no genes")
