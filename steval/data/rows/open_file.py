"""One HDF5 file as every reader of this room opens it: at first use, by each process for itself."""

import os
import threading
from pathlib import Path
from typing import Any

import h5py

from steval.data.rows.flat_array import FlatArray
from steval.data.rows.unreadable import reading

CHUNK_CACHE_BYTES = 64 * 2**20


class OpenFile:
    """An HDF5 file for reading, by several threads; a forked or unpickled copy opens it anew.

    `close` lets go of it until the next use.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._forget()

    @property
    def handle(self) -> h5py.File:
        """The open file; one that is no HDF5, truncated or gone is a `DataError`."""
        with self._lock:
            if self._owner != os.getpid():  # after a fork: the parent's handle is not ours to use or to close
                self._handle, self._descriptor, self._arrays, self._owner = None, -1, {}, os.getpid()
            if self._handle is None:
                self._handle = self._opened()
            return self._handle

    def array(self, name: str) -> FlatArray:
        """The data set `name`, read by ranges of rows."""
        handle = self.handle
        with self._lock:
            if name not in self._arrays:
                if self._descriptor < 0:
                    self._descriptor = os.open(self.path, os.O_RDONLY)
                self._arrays[name] = FlatArray(handle[name], self._descriptor, self._lock, self.path)
            return self._arrays[name]

    def close(self) -> None:
        """Close what this process opened."""
        with self._lock:
            if self._owner == os.getpid():
                if self._handle is not None:
                    self._handle.close()
                if self._descriptor >= 0:
                    os.close(self._descriptor)
            self._handle, self._descriptor, self._arrays = None, -1, {}

    def _opened(self) -> h5py.File:
        with reading(f"{self.path} is not a readable h5ad file (not HDF5, or truncated)"):
            return h5py.File(self.path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._handle: h5py.File | None = None
        self._descriptor = -1
        self._arrays: dict[str, FlatArray] = {}
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._forget()
