"""Rows of an `obsm` embedding of many files, in memory or from disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steval.data.cellfile import CellFile
from steval.errors import DataError


class ObsmStore:
    """An embedding `[n, D]` of the cells of several files, by their number over all files."""

    def __init__(self, paths: Sequence[Path], num_cells: Sequence[int], key: str, memory_bytes: int):
        self.paths = tuple(paths)
        self.key = key
        self._starts = np.concatenate([[0], np.cumsum(num_cells)])
        widths = {path: self._width(path) for path in paths}
        if len(set(widths.values())) > 1:
            raise DataError(
                f"obsm matrix {key!r} has different widths", [f"{path}: {width}" for path, width in widths.items()]
            )
        self.dimension = widths[paths[0]]
        self._memory: np.ndarray | None = None

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `indices [n]`, float32 `[n, D]`, written to `out` where it is given; index -1 is a row of zeros."""
        if self._memory is None:
            counts = np.diff(self._starts)
            self._memory = np.concatenate(
                [self._read(p, np.arange(n)) for p, n in zip(self.paths, counts, strict=True)]
            )
        gathered = np.take(self._memory, indices, axis=0, out=out)
        gathered[np.asarray(indices) < 0] = 0
        return gathered

    def _width(self, path: Path) -> int:
        return self._read(path, np.arange(1)).shape[1]

    def _read(self, path: Path, rows: np.ndarray) -> np.ndarray:
        with CellFile.open(path) as cells:
            return cells.obsm(self.key, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}
