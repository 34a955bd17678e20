"""Scattered rows of one h5ad file as dense float32: CSR and dense layouts, lognormed and aligned on the way."""

import os
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from steval.data.cells.genes import GeneAlignment
from steval.data.rows import densify
from steval.data.rows.flat_array import FlatArray
from steval.errors import DataError

CHUNK_CACHE_BYTES = 64 * 2**20


class FileRows:
    """Rows of X of one open file; may be shared by threads, not by processes."""

    def __init__(self, path: Path, alignment: GeneAlignment, target_sum: float | None):
        self._alignment = alignment
        self._position = alignment.position_of_source
        self._target_sum = target_sum
        self._scratch = threading.local()
        lock = threading.Lock()
        try:
            self._handle = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
        except OSError as error:
            raise DataError(f"{path} can no longer be opened: {error}") from error
        self._descriptor = os.open(path, os.O_RDONLY)
        stored = self._handle["X"]
        self._indptr: np.ndarray | None = None
        if isinstance(stored, h5py.Dataset):
            self._values = FlatArray(stored, self._descriptor, lock, path)
        else:
            self._values = FlatArray(stored["data"], self._descriptor, lock, path)
            self._columns = FlatArray(stored["indices"], self._descriptor, lock, path)
            self._indptr = stored["indptr"][:].astype(np.int64)

    def gather(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """`out[places[i]]` (float32, zero or not) becomes row `rows[i]` of X in the order of the contract."""
        order = np.argsort(rows, kind="stable")
        if self._indptr is None:
            self._gather_dense(rows[order], out, places[order])
        else:
            self._gather_sparse(self._indptr, rows[order], out, places[order])

    def close(self) -> None:
        """Close the file; nothing can be gathered afterwards."""
        self._handle.close()
        os.close(self._descriptor)

    def _gather_sparse(self, indptr: np.ndarray, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        starts, stops = indptr[rows], indptr[rows + 1]
        lengths = stops - starts
        total = int(lengths.sum())
        values = self._buffer("values", total, self._values.dtype)
        columns = self._buffer("columns", total, self._columns.dtype)
        self._values.read(starts, stops, values)
        self._columns.read(starts, stops, columns)
        begins = np.cumsum(lengths) - lengths
        arguments = (out, places, begins, lengths, _as(values, np.float32), _as(columns, np.int32))
        if self._target_sum is not None:
            densify.scatter_counts(*arguments, self._position, self._target_sum)
        elif self._alignment.is_identity:
            densify.scatter_rows(*arguments)
        else:
            densify.scatter_aligned(*arguments, self._position)

    def _gather_dense(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        width = self._values.shape[1]
        values = self._buffer("values", len(rows) * width, self._values.dtype).reshape(len(rows), width)
        self._values.read(rows, rows + 1, values)
        if self._target_sum is not None:
            totals = values.sum(axis=1, dtype=np.float64)
            factors = np.divide(self._target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
            values = np.log1p(values * factors[:, None])
        kept = np.flatnonzero(self._position >= 0)
        gathered = np.zeros((len(rows), out.shape[1]), dtype=np.float32)
        gathered[:, self._position[kept]] = values[:, kept]
        out[places] = gathered

    def _buffer(self, name: str, size: int, dtype: Any) -> np.ndarray:
        """Scratch memory of this thread, kept from call to call: fresh pages would cost as much as the reading."""
        buffer = getattr(self._scratch, name, None)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size + size // 4, dtype=dtype)
            setattr(self._scratch, name, buffer)
        return buffer[:size]


def _as(values: np.ndarray, dtype: Any) -> np.ndarray:
    return values if values.dtype == dtype else values.astype(dtype)
