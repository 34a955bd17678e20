"""Rows of many h5ad files as one matrix of a gene contract: lognormed, aligned, densified; in memory or from disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.data.cellfile import CellFile
from steval.data.genes import GeneAlignment
from steval.data.scale import lognorm


@dataclass(frozen=True)
class SourceFile:
    """One file of a row store."""

    path: Path
    num_cells: int
    alignment: GeneAlignment
    target_sum: float | None
    """Counts are lognormed to this total; none: the values are lognorm already."""


class RowStore:
    """Cells of several files by their number over all files, as lognorm expression `[n, G]` of one gene contract.

    Up to `memory_bytes` are kept in memory (the whole matrix, loaded at the first use); a larger one is read from disk row by
    row. Can be pickled: a copy opens its own files.
    """

    def __init__(self, files: Sequence[SourceFile], memory_bytes: int):
        self.files = tuple(files)
        self.memory_bytes = memory_bytes
        self.num_genes = len(files[0].alignment.target)
        self._starts = np.concatenate([[0], np.cumsum([file.num_cells for file in files])])
        self._memory: sp.csr_matrix | None = None

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `indices [n]`, float32 lognorm `[n, G]`, written to `out` where it is given; index -1 is a row of zeros."""
        indices = np.asarray(indices, dtype=np.int64)
        if out is None:
            out = np.empty((len(indices), self.num_genes), dtype=np.float32)
        out[...] = 0
        self._rows(indices).toarray(out=out)
        out[indices < 0] = 0
        return out

    def _rows(self, indices: np.ndarray) -> sp.csr_matrix:
        if self._memory is None:
            self._memory = sp.vstack(
                [self._read(number, np.arange(file.num_cells)) for number, file in enumerate(self.files)], format="csr"
            )
        return self._memory[indices]

    def _read(self, number: int, rows: np.ndarray) -> sp.csr_matrix:
        file = self.files[number]
        with CellFile.open(file.path) as cells:
            matrix = cells.rows(rows)
        return file.alignment.apply(lognorm(matrix, file.target_sum) if file.target_sum else matrix)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}
