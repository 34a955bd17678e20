"""Rows of an h5ad read past the HDF5 library where they lie plain in the file: scattered groups cost bytes, not calls."""

import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.rows.csr import csr_of, require_columns
from steval.data.rows.csr_cache import cached_rows
from steval.data.rows.flat_array import FlatArray

SORTING_BYTES = 1 << 28


class PlainRows:
    """X of one file by rows, CSR or dense; takes the place of a `CellFile`'s own reader and may be shared by threads."""

    def __init__(self, path: Path, cells: CellFile, copy: TemporaryDirectory[str] | None = None):
        self._path = path
        self._cells = cells
        self._copy = copy
        self.obsm_keys = cells.obsm_keys
        self._handle = h5py.File(path, "r")
        self._descriptor = os.open(path, os.O_RDONLY)
        stored, lock = self._handle["X"], threading.Lock()
        self._indptr: np.ndarray | None = None
        if isinstance(stored, h5py.Dataset):
            self._values = FlatArray(stored, self._descriptor, lock, path)
        else:
            self._values = FlatArray(stored["data"], self._descriptor, lock, path)
            self._columns = FlatArray(stored["indices"], self._descriptor, lock, path)
            self._indptr = stored["indptr"][:].astype(np.int64)
        self.shape = (cells.num_cells, len(cells.genes))

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        """CSR `[n, G]` of the rows `indices` in that order, in the stored precision."""
        indices = np.asarray(indices, dtype=np.int64)
        if self._indptr is None:
            dense = np.empty((len(indices), self.shape[1]), dtype=self._values.dtype)
            self._values.read(indices, indices + 1, dense)
            return _sparse(dense)
        starts, stops = self._indptr[indices], self._indptr[indices + 1]
        lengths = stops - starts
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        values = np.empty(indptr[-1], dtype=self._values.dtype)
        columns = np.empty(indptr[-1], dtype=self._columns.dtype)
        self._values.read(starts, stops, values)
        self._columns.read(starts, stops, columns)
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        matrix = sp.csr_matrix((values, columns, indptr), shape=(len(indices), self.shape[1]))
        matrix.sort_indices()
        return require_columns(matrix, self._path)

    def obsm(self, key: str, indices: np.ndarray) -> np.ndarray:
        """Rows of an `obsm` matrix."""
        return self._cells.obsm(key, indices)

    def close(self) -> None:
        """Close the files, and remove the copy by rows where one was made."""
        self._cells.close()
        self._handle.close()
        os.close(self._descriptor)
        if self._copy is not None:
            self._copy.cleanup()


def quick_rows(path: Path, cells: CellFile, labels: np.ndarray) -> CellFile:
    """`cells` of the file `path` with a reader that is quick for groups of equal `labels`, wherever their rows lie.

    Plain bytes are read directly. Compressed rows that lie scattered, and CSC, which has no rows, are first copied by rows
    to a temporary file, so that nothing is unpacked more than once and memory stays flat.
    """
    with h5py.File(path, "r") as handle:
        stored = handle["X"]
        is_dense = isinstance(stored, h5py.Dataset)
        is_columns = not is_dense and "csc" in str(
            stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format"))
        )
        dataset = stored if is_dense else stored["data"]
        is_filtered = bool(dataset.id.get_create_plist().get_nfilters())
    copy = None
    if is_columns or (is_filtered and not is_dense and _is_scattered(labels)):
        copy = TemporaryDirectory(prefix="steval-rows-")
        path = cached_rows(path, Path(copy.name), SORTING_BYTES)
    elif is_filtered:
        return cells
    return CellFile(PlainRows(path, cells, copy), cells.obs, cells.genes, cells.uns, cells.name)


def _is_scattered(labels: np.ndarray) -> bool:
    """Whether most cells have a neighbour of another label."""
    return len(labels) > 1 and float((labels[1:] != labels[:-1]).mean()) > 0.5


def _sparse(dense: np.ndarray) -> sp.csr_matrix:
    """CSR of a dense block, in float32 or float64."""
    if dense.dtype not in (np.float32, np.float64):
        dense = dense.astype(np.float32 if dense.dtype == np.float16 else np.float64)
    return csr_of(dense)
