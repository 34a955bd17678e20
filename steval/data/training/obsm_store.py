"""Rows of an `obsm` embedding of many files, in memory or from disk."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.data.rows.obsm import StoredObsm, dense_rows
from steval.data.rows.open_file import OpenFile
from steval.errors import DataError


class ObsmStore:
    """An embedding `[n, D]` of the cells of several files, by their number over all files.

    Kept in memory up to `memory_bytes`, read from disk beyond. Threads, pickling and forking as for `RowStore`.
    """

    def __init__(self, paths: Sequence[Path], num_cells: Sequence[int], key: str, memory_bytes: int):
        self.paths = tuple(paths)
        self.key = key
        self._starts = np.concatenate([[0], np.cumsum(num_cells)])
        widths = {path: self._read(path, np.arange(1)).shape[1] for path in paths}
        if len(set(widths.values())) > 1:
            raise DataError(
                f"obsm matrix {key!r} has different widths", [f"{path}: {width}" for path, width in widths.items()]
            )
        self.dimension = widths[paths[0]]
        self.in_memory = int(self._starts[-1]) * self.dimension * 4 <= memory_bytes
        self._memory: np.ndarray | None = None
        self._files = [OpenFile(path) for path in paths]
        self._lock = threading.Lock()

    def load(self) -> None:
        """Bring the embedding into memory, if that is where it is to be."""
        with self._lock:
            if not self.in_memory or self._memory is not None:
                return
            counts = np.diff(self._starts)
            pieces = [self._read(path, np.arange(count)) for path, count in zip(self.paths, counts, strict=True)]
            self._memory = np.concatenate(pieces)

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `indices [n]`, float32 `[n, D]`, written to `out` where it is given; index -1 is a row of zeros."""
        indices = np.asarray(indices, dtype=np.int64)
        if out is None:
            out = np.empty((len(indices), self.dimension), dtype=np.float32)
        self.load()
        if self._memory is not None:
            np.take(self._memory, indices, axis=0, out=out, mode="clip")
        else:
            self._gather_from_disk(indices, out)
        out[indices < 0] = 0
        return out

    def _gather_from_disk(self, indices: np.ndarray, out: np.ndarray) -> None:
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(owners[indices >= 0]).tolist():
            places = np.flatnonzero((owners == number) & (indices >= 0))
            out[places] = self._from_disk(number, indices[places] - self._starts[number])

    def _from_disk(self, number: int, rows: np.ndarray) -> np.ndarray:
        file = self._files[number]
        stored = StoredObsm(file)
        if self.key not in stored or not stored.is_array(self.key):
            raise DataError(
                f"{file.path}: obsm matrix {self.key!r} is not stored as a plain array, so it cannot be read from disk; "
                "raise data.memory_gb, or store it as an array"
            )
        return dense_rows(stored.rows(self.key, rows), f"obsm[{self.key!r}] of {file.path}")

    def _read(self, path: Path, rows: np.ndarray) -> np.ndarray:
        with CellFile.open(path, with_obs=False) as cells:
            return cells.obsm(self.key, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
