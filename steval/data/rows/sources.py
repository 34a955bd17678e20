"""Where a `CellFile` gets its rows from: a file's X in its layout, memory, or other rows selected, transformed or stacked."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

from steval.data.rows.csr import require_columns
from steval.errors import DataError

MERGE_GAP_ROWS = 16
"""Rows that lie this close are read in one piece: a few unused rows cost less than another read."""
MERGE_BYTES = 32 * 2**20
"""Largest such piece (a longer single row excepted): evenly spaced rows do not pull in the whole file at once."""


class Rows(Protocol):
    """Rows of cells × genes and of obsm matrices, by row number in any order, repeats allowed."""

    shape: tuple[int, int]
    obsm_keys: list[str]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        """CSR `[n, G]` with sorted columns, in the order of `indices [n]`."""
        ...

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        """Rows of an obsm matrix, float32 `[n, D]`."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class MemoryRows:
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


class SelectedRows:
    def __init__(self, source: Rows, selected: np.ndarray):
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


class TransformedRows:
    def __init__(self, source: Rows, transform: Callable[[sp.csr_matrix], sp.csr_matrix], num_genes: int):
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


class StackedRows:
    def __init__(self, sources: list[Rows]):
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

    def _split(self, indices: np.ndarray) -> list[tuple[Rows, np.ndarray]]:
        owner = self._owner(indices)
        return [(source, indices[owner == i] - self._starts[i]) for i, source in enumerate(self._sources)]

    def _restore(self, indices: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(self._owner(indices), kind="stable"), kind="stable")


class FileRows:
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
        self._indptr = stored["indptr"][:].astype(np.int64)
        num_pointers = self.shape[0 if self._layout == "csr" else 1] + 1
        num_values = min(len(stored["data"]), len(stored["indices"]))
        if len(self._indptr) != num_pointers or self._indptr[0] != 0 or self._indptr[-1] > num_values:
            raise DataError(f"{path} is damaged: X does not have the values that its shape and row pointers say")
        if (np.diff(self._indptr) < 0).any():
            raise DataError(f"{path} is damaged: the row pointers of X decrease")

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        if self._layout == "csc":
            if self._memory is None:
                stored = read_element(self._handle["X"])
                self._require_inside(stored.indices, self.shape[0])
                self._memory = stored.tocsr()
                self._memory.sort_indices()
            return self._memory[indices]
        try:
            return self._dense_rows(indices) if self._layout == "dense" else self._csr_rows(indices)
        except OSError as error:
            raise DataError(f"{self._path} is damaged: X cannot be read ({first_line(error)})") from error

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        stored = self._handle["obsm"][key]
        if not isinstance(stored, h5py.Dataset):
            return np.asarray(read_element(stored), dtype=np.float32)[indices]
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
        width = stored["data"].dtype.itemsize + stored["indices"].dtype.itemsize
        for first, last in _runs(wanted, self._indptr[wanted] * width, self._indptr[wanted + 1] * width):
            low, high = int(self._indptr[wanted[first]]), int(self._indptr[wanted[last - 1] + 1])
            begin, end = indptr_sorted[first], indptr_sorted[last]
            if high - low == end - begin:
                _read_into(data[begin:end], stored["data"], low)
                _read_into(columns[begin:end], stored["indices"], low)
                continue
            take = _ranges(self._indptr[wanted[first:last]] - low, lengths[first:last])
            data[begin:end], columns[begin:end] = stored["data"][low:high][take], stored["indices"][low:high][take]
        matrix = sp.csr_matrix((data, columns, indptr_sorted), shape=(len(wanted), self.shape[1]))
        matrix.sort_indices()
        require_columns(matrix, self._path)
        return matrix if np.array_equal(wanted, indices) else matrix[position]

    def _require_inside(self, indices: np.ndarray, limit: int) -> None:
        """Compiled code below us does not look where it writes."""
        if len(indices) and (indices.min() < 0 or indices.max() >= limit):
            raise DataError(
                f"{self._path} is damaged: X holds values outside its {self.shape[0]} × {self.shape[1]} shape"
            )


def _read_into(out: np.ndarray, stored: h5py.Dataset, start: int) -> None:
    """`out [n]` from `start` on; without a copy between where the types are the same."""
    selection = np.s_[start : start + len(out)]
    if len(out) and stored.dtype == out.dtype:
        stored.read_direct(out, selection)
    else:
        out[:] = stored[selection]


def _runs(wanted: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int]]:
    """Pieces `[first, last)` of sorted row numbers that lie close together.

    `starts`, `stops`: the bytes at which each of these rows begins and ends; no piece of several rows is over `MERGE_BYTES`.
    """
    if not len(wanted):
        return []
    cuts = np.flatnonzero(np.diff(wanted) > MERGE_GAP_ROWS) + 1
    pieces = []
    for begin, end in pairwise([0, *cuts.tolist(), len(wanted)]):
        first = begin
        while first < end:
            fitting = int(np.searchsorted(stops[first:end], starts[first] + MERGE_BYTES, side="right"))
            pieces.append((first, first + max(fitting, 1)))
            first = pieces[-1][1]
    return pieces


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated `arange(start, start + length)` of each pair."""
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def _ordered_rows(stored: h5py.Dataset, indices: np.ndarray) -> np.ndarray:
    """Rows of a dense dataset in any order, repeats allowed."""
    unique, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if not len(unique):
        return np.empty((0, stored.shape[1]), dtype=stored.dtype)
    width = stored.dtype.itemsize * int(np.prod(stored.shape[1:]))
    pieces = []
    for first, last in _runs(unique, unique * width, (unique + 1) * width):
        low = int(unique[first])
        pieces.append(stored[low : int(unique[last - 1]) + 1][unique[first:last] - low])
    return np.concatenate(pieces)[inverse]


def read_element(stored: Any) -> Any:
    """An element by its own encoding; typed loosely, since the encoding decides."""
    return ad.io.read_elem(stored)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
