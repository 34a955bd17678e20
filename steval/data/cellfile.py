"""An h5ad file read lazily: cells by row number, as CSR, whatever the layout on disk."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.files import atomic_path, require_file
from steval.data.obs_codes import num_rows
from steval.data.record import read_record
from steval.errors import DataError

MERGE_GAP_ROWS = 16
"""Rows that lie this close are read in one piece: a few unused rows cost less than another read."""


class CellFile:
    """Cells × genes, opened lazily from an h5ad or wrapped around an AnnData; use as a context manager.

    `obs` and gene names are in memory, X stays on disk (CSR and dense layouts; CSC is turned into CSR in memory once).
    Safe to open in several processes, not to share one object between threads.
    """

    def __init__(self, source: "_Rows", obs: pd.DataFrame, genes: list[str], uns: dict[str, Any], name: str):
        self._source = source
        self.obs = obs
        self.genes = genes
        self.uns = uns
        self.name = name
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
                f"{path} is not a readable h5ad file (not HDF5, or truncated): {_first_line(error)}"
            ) from error
        try:
            absent = [key for key in ("obs", "var", "X") if key not in handle]
            if absent:
                raise DataError(f"{path} is HDF5 but not an AnnData file: it lacks {', '.join(absent)}")
            obs = _read(handle["obs"]) if with_obs else pd.DataFrame(index=pd.RangeIndex(num_rows(handle["obs"])))
            var = _read(handle["var"])
            uns = _read(handle["uns"]) if "uns" in handle else {}
            source = _FileRows(handle, path)
            _require_shape(source.shape, len(obs), len(var), path)
        except DataError:
            handle.close()
            raise
        except (OSError, KeyError, ValueError, TypeError) as error:
            handle.close()
            raise DataError(f"{path} cannot be read as AnnData: {_first_line(error)}") from error
        return cls(source, obs, [str(gene) for gene in var.index], dict(uns), str(path))

    @classmethod
    def wrap(cls, adata: ad.AnnData, name: str = "the data") -> Self:
        """The same interface on an AnnData in memory."""
        if adata.X is None:
            raise DataError(f"{name} has no X matrix")
        matrix = sp.csr_matrix(cast(Any, adata.X))
        source = _MemoryRows(matrix, {key: np.asarray(value) for key, value in adata.obsm.items()})
        return cls(source, pd.DataFrame(adata.obs), [str(gene) for gene in adata.var_names], dict(adata.uns), name)

    def select(self, indices: np.ndarray) -> Self:
        """The cells `indices [n]` as a CellFile of their own, read from the same open file."""
        source = _SelectedRows(self._source, np.asarray(indices, dtype=np.int64))
        name = f"{self.name} ({len(indices)} of {self.num_cells} cells)"
        return type(self)(source, self.obs.iloc[indices], self.genes, self.uns, name)

    def transformed(
        self, transform: Callable[[sp.csr_matrix], sp.csr_matrix], genes: Sequence[str], uns: dict[str, Any], name: str
    ) -> Self:
        """The same cells with `transform` applied to every block of rows that is read: other genes, another scale.

        `name` must differ from the file's path, since the content does.
        """
        return type(self)(_TransformedRows(self._source, transform, len(genes)), self.obs, list(genes), uns, name)

    @classmethod
    def stack(cls, parts: "Sequence[CellFile]", name: str = "the data") -> Self:
        """Cells of several files with the same genes in the same order, one file after the other."""
        if any(part.genes != parts[0].genes for part in parts):
            raise DataError(f"{name}: the files have different genes; make them alike with steval prepare --genes")
        obs = pd.concat([part.obs for part in parts], join="inner")
        return cls(_StackedRows([part._source for part in parts]), obs, parts[0].genes, parts[0].uns, name)

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
        raise DataError(f"{path} cannot be read as AnnData: {_first_line(error)}") from error


def write_anndata(adata: ad.AnnData, path: Path, compression: Literal["gzip", "lzf"] | None = "gzip") -> None:
    """Write an h5ad atomically."""
    with atomic_path(path) as partial:
        adata.write_h5ad(partial, compression=compression)


class _Rows:
    """Where rows come from; file or memory."""

    shape: tuple[int, int]
    obsm_keys: list[str]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        raise NotImplementedError

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _MemoryRows(_Rows):
    def __init__(self, matrix: sp.csr_matrix, obsm: dict[str, np.ndarray]):
        self._matrix = sp.csr_matrix(matrix)
        self._matrix.sum_duplicates()
        self._obsm = obsm
        self.shape = self._matrix.shape
        self.obsm_keys = list(obsm)

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._matrix[indices]

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self._obsm[key][indices], dtype=np.float32)

    def close(self) -> None:
        """Nothing is open."""


class _SelectedRows(_Rows):
    def __init__(self, source: _Rows, selected: np.ndarray):
        self._source = source
        self._selected = selected
        self.shape = (len(selected), source.shape[1])
        self.obsm_keys = source.obsm_keys

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._source.rows(self._selected[indices])

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        return self._source.obsm(key, self._selected[indices])

    def close(self) -> None:
        self._source.close()


class _TransformedRows(_Rows):
    def __init__(self, source: _Rows, transform: Callable[[sp.csr_matrix], sp.csr_matrix], num_genes: int):
        self._source = source
        self._transform = transform
        self.shape = (source.shape[0], num_genes)
        self.obsm_keys = source.obsm_keys

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._transform(self._source.rows(indices))

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        return self._source.obsm(key, indices)

    def close(self) -> None:
        self._source.close()


class _StackedRows(_Rows):
    def __init__(self, sources: list[_Rows]):
        self._sources = sources
        self._starts = np.concatenate([[0], np.cumsum([source.shape[0] for source in sources])])
        self.shape = (int(self._starts[-1]), sources[0].shape[1])
        self.obsm_keys = [key for key in sources[0].obsm_keys if all(key in source.obsm_keys for source in sources)]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        pieces = [source.rows(local) for source, local in self._split(indices)]
        return sp.csr_matrix(sp.vstack(pieces, format="csr"))[self._restore(indices)]

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        return np.concatenate([source.obsm(key, local) for source, local in self._split(indices)])[
            self._restore(indices)
        ]

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _split(self, indices: np.ndarray) -> list[tuple[_Rows, np.ndarray]]:
        owner = self._owner(indices)
        return [(source, indices[owner == i] - self._starts[i]) for i, source in enumerate(self._sources)]

    def _restore(self, indices: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(self._owner(indices), kind="stable"), kind="stable")


class _FileRows(_Rows):
    def __init__(self, handle: h5py.File, path: Path):
        self._handle = handle
        self._path = path
        self._memory: sp.csr_matrix | None = None
        self.obsm_keys = list(handle["obsm"]) if "obsm" in handle else []
        stored = handle["X"]
        if isinstance(stored, h5py.Dataset):
            self._layout = "dense"
            self.shape = stored.shape
            return
        self._layout = str(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", ""))).removesuffix(
            "_matrix"
        )
        if self._layout not in ("csr", "csc"):
            raise DataError(f"{path}: X is stored as {self._layout or 'an unknown kind'}; csr, csc and dense are read")
        num_rows, num_genes = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
        self.shape = (int(num_rows), int(num_genes))
        self._indptr = stored["indptr"][:]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        if self._layout == "csc":
            if self._memory is None:
                self._memory = _read(self._handle["X"]).tocsr()
                self._memory.sort_indices()
            return self._memory[indices]
        try:
            return self._dense_rows(indices) if self._layout == "dense" else self._csr_rows(indices)
        except OSError as error:
            raise DataError(f"{self._path} is damaged: X cannot be read ({_first_line(error)})") from error

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        stored = self._handle["obsm"][key]
        if not isinstance(stored, h5py.Dataset):
            return np.asarray(_read(stored), dtype=np.float32)[indices]
        return _ordered_rows(stored, indices).astype(np.float32, copy=False)

    def close(self) -> None:
        self._handle.close()

    def _dense_rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return sp.csr_matrix(_ordered_rows(self._handle["X"], indices))

    def _csr_rows(self, indices: np.ndarray) -> sp.csr_matrix:
        stored = self._handle["X"]
        wanted, position = np.unique(indices, return_inverse=True)
        lengths = self._indptr[wanted + 1] - self._indptr[wanted]
        indptr_sorted = np.concatenate([[0], np.cumsum(lengths)])
        data = np.empty(indptr_sorted[-1], dtype=stored["data"].dtype)
        columns = np.empty(indptr_sorted[-1], dtype=np.int32)
        for first, last in _runs(wanted):
            low, high = int(self._indptr[wanted[first]]), int(self._indptr[wanted[last - 1] + 1])
            piece_data, piece_columns = stored["data"][low:high], stored["indices"][low:high]
            begin, end = indptr_sorted[first], indptr_sorted[last]
            if high - low == end - begin:
                data[begin:end], columns[begin:end] = piece_data, piece_columns
                continue
            take = _ranges(self._indptr[wanted[first:last]] - low, lengths[first:last])
            data[begin:end], columns[begin:end] = piece_data[take], piece_columns[take]
        matrix = sp.csr_matrix((data, columns, indptr_sorted), shape=(len(wanted), self.shape[1]))
        matrix.sort_indices()
        return matrix if np.array_equal(wanted, indices) else matrix[position]


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """Pieces `[first, last)` of sorted row numbers that lie close together."""
    if not len(wanted):
        return []
    cuts = np.flatnonzero(np.diff(wanted) > MERGE_GAP_ROWS) + 1
    edges = [0, *cuts.tolist(), len(wanted)]
    return list(pairwise(edges))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated `arange(start, start + length)` of each pair."""
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def _ordered_rows(stored: h5py.Dataset, indices: np.ndarray) -> np.ndarray:
    """Rows of a dense dataset in any order, repeats allowed."""
    unique, inverse = np.unique(indices, return_inverse=True)
    if not len(unique):
        return np.empty((0, stored.shape[1]), dtype=stored.dtype)
    pieces = []
    for first, last in _runs(unique):
        low = int(unique[first])
        pieces.append(stored[low : int(unique[last - 1]) + 1][unique[first:last] - low])
    return np.concatenate(pieces)[inverse]


def _require_shape(shape: tuple[int, ...], num_obs: int, num_var: int, path: Path) -> None:
    if tuple(shape) != (num_obs, num_var):
        raise DataError(
            f"{path}: X is {shape[0]} × {shape[1]}, but there are {num_obs} cells in obs and {num_var} genes in var"
        )
    if not num_obs:
        raise DataError(f"{path} holds no cells")
    if not num_var:
        raise DataError(f"{path} holds no genes")


def _read(stored: Any) -> Any:
    """An element by its own encoding; typed loosely, since the encoding decides."""
    return ad.io.read_elem(stored)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
