"""Rows of many h5ad files as one matrix of a gene contract: lognormed, aligned, densified; in memory or from disk."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import GeneAlignment
from steval.data.cells.scale import lognorm
from steval.data.rows import densify
from steval.data.rows.matrix import RowValues, StoredMatrix
from steval.data.rows.open_file import OpenFile
from steval.logs import progress_bar

SMALL_BYTES = 256 * 2**20
"""Dense data up to this size is kept dense: the quickest to gather from."""
BYTES_PER_VALUE = 8
"""Of a value in sparse memory: float32 and a column number."""
LOAD_ROWS = 4096
DIGEST_ROWS = 256

Place = Literal["dense memory", "sparse memory", "disk"]
Allocate = Callable[[int, type], np.ndarray]
"""What gives memory for so many numbers of a type, as `np.empty` does; theirs until whoever gives it says otherwise."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a row store."""

    path: Path
    num_cells: int
    alignment: GeneAlignment
    target_sum: float | None
    """Counts are lognormed to this total; none: the values are lognorm already."""


@dataclass(frozen=True)
class SparseRows:
    """Expression of n cells by its stored values, row after row; for transfer to a device that makes it dense there."""

    values: np.ndarray
    """float32 `[N]`, lognorm."""
    columns: np.ndarray
    """`[N]`: int16 where the contract's genes are numbered by it, else int32."""
    counts: np.ndarray
    """int32 `[n]`: values of each row."""
    num_genes: int


class RowStore:
    """Cells of several files by their number over all files, as lognorm expression `[n, G]` of one gene contract.

    Up to `memory_bytes` are kept in memory, loaded by `load` or at the first use; a larger matrix is read from disk row by row, and
    memory does not grow with it. May be shared by threads. Can be pickled and forked: a copy opens its own files; what
    was loaded before a fork is shared, what is pickled is loaded anew.
    """

    def __init__(self, files: Sequence[SourceFile], memory_bytes: int):
        self.files = tuple(files)
        self.memory_bytes = memory_bytes
        self.num_genes = len(files[0].alignment.target)
        self._starts = np.concatenate([[0], np.cumsum([file.num_cells for file in files])])
        self._matrices = [StoredMatrix(OpenFile(file.path)) for file in files]
        self.close()  # each is opened again where its rows are needed
        self.place = self._choose()
        """Where the rows come from."""
        self._dense: np.ndarray | None = None
        self._sparse: sp.csr_matrix | None = None
        self._lock = threading.Lock()

    @property
    def num_cells(self) -> int:
        return int(self._starts[-1])

    @property
    def needed_bytes(self) -> int:
        """Memory that would hold all rows."""
        return min(self._sizes())

    def load(self) -> None:
        """Bring what is to be kept in memory into memory; nothing to do for a store on disk."""
        with self._lock:
            if self.place == "dense memory" and self._dense is None:
                self._dense = self._loaded(_DenseMemory(self.num_cells, self.num_genes))
            elif self.place == "sparse memory" and self._sparse is None:
                self._sparse = self._loaded(_SparseMemory(self._num_values, self.num_genes))

    def _loaded(self, memory: "_DenseMemory | _SparseMemory") -> Any:
        with progress_bar(self.num_cells, "loading cells", "cell") as bar:
            for file in self.files:
                with CellFile.open(file.path, with_obs=False) as cells:
                    for rows, matrix in cells.blocks(LOAD_ROWS):
                        block = file.alignment.apply(lognorm(matrix, file.target_sum) if file.target_sum else matrix)
                        memory.append(block)
                        bar.update(len(rows))
        return memory.finish()

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `indices [n]`, float32 lognorm `[n, G]`, written to `out` where it is given; index -1 is a row of zeros."""
        indices = np.asarray(indices, dtype=np.int64)
        if out is None:
            out = np.empty((len(indices), self.num_genes), dtype=np.float32)
        if len(indices) and not (indices.min() >= -1 and indices.max() < self.num_cells):
            raise IndexError(f"cell numbers must be from -1 to {self.num_cells - 1}")
        self.load()
        if self._dense is not None:
            np.take(self._dense, indices, axis=0, out=out, mode="clip")
        elif self._sparse is not None:
            places = np.flatnonzero(indices >= 0)
            starts = self._sparse.indptr[indices[places]]
            lengths = self._sparse.indptr[indices[places] + 1] - starts
            densify.scatter_rows(out, places, starts, lengths, self._sparse.data, self._sparse.indices, self.num_genes)
        else:
            self._gather_from_disk(indices, out)
        out[indices < 0] = 0
        return out

    def gather_sparse(self, indices: np.ndarray, allocate: Allocate = np.empty) -> SparseRows:
        """As `gather`, by the stored values, in memory from `allocate`; for a store whose `place` is sparse memory or disk."""
        indices = np.asarray(indices, dtype=np.int64)
        self.load()
        matrix = self._sparse
        if matrix is None:
            return self._pack_from_disk(indices, allocate)
        starts = matrix.indptr[indices]
        counts = np.where(indices < 0, 0, matrix.indptr[indices + 1] - starts)
        values, columns = self._room(int(counts.sum()), allocate)
        densify.pick_rows(starts, counts, matrix.data, matrix.indices, values, columns)
        return SparseRows(values, columns, counts.astype(np.int32), self.num_genes)

    def expression_digests(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """64-bit digest of the whole expression of each cell, uint64 `[n]`, and its number of expressed genes `[n]`."""
        self.load()
        if self._sparse is not None:
            matrix = self._sparse
            starts, stops = matrix.indptr[indices], matrix.indptr[indices + 1]
            return densify.digest_sparse(starts, stops, matrix.data.view(np.uint32), matrix.indices)
        if not len(indices):
            return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        blocks = [
            densify.digest_dense(self.gather(indices[start : start + DIGEST_ROWS]).view(np.uint32))
            for start in range(0, len(indices), DIGEST_ROWS)
        ]
        return np.concatenate([digests for digests, _ in blocks]), np.concatenate([counts for _, counts in blocks])

    def locate(self, index: int) -> tuple[int, int]:
        """File number and row of a cell."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def close(self) -> None:
        """Close the files that this process opened."""
        for matrix in self._matrices:
            matrix.close()

    @property
    def _num_values(self) -> int:
        return sum(matrix.num_values for matrix in self._matrices)

    def _gather_from_disk(self, indices: np.ndarray, out: np.ndarray) -> None:
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(owners[indices >= 0]).tolist():
            places = np.flatnonzero((owners == number) & (indices >= 0))
            file = self.files[number]
            position = None if file.alignment.is_identity else file.alignment.position_of_source
            self._matrices[number].gather(
                indices[places] - self._starts[number], out, places, position, file.target_sum
            )

    def _pack_from_disk(self, indices: np.ndarray, allocate: Allocate) -> SparseRows:
        assert self.place == "disk"
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        counts = np.zeros(len(indices), dtype=np.int64)
        found: list[tuple[np.ndarray, RowValues, np.ndarray, float]] = []
        for number in np.unique(owners[indices >= 0]).tolist():
            places = np.flatnonzero((owners == number) & (indices >= 0))
            places = places[np.argsort(indices[places], kind="stable")]
            alignment = self.files[number].alignment
            position = alignment.position_of_source[: 0 if alignment.is_identity else None]
            stored = self._matrices[number].stored(indices[places] - self._starts[number], position)
            counts[places] = stored.kept
            found.append((places, stored, position, self.files[number].target_sum or 0.0))
        values, columns = self._room(int(counts.sum()), allocate)
        begins = np.cumsum(counts) - counts
        for places, stored, position, target_sum in found:
            read = (begins[places], stored.lengths, stored.values, stored.columns)
            densify.pack_rows(*read, position, target_sum, values, columns)
        return SparseRows(values, columns, counts.astype(np.int32), self.num_genes)

    def _room(self, num_values: int, allocate: Allocate) -> tuple[np.ndarray, np.ndarray]:
        """Memory for the values and the columns of packed rows."""
        columns = allocate(num_values, np.int16 if self.num_genes <= np.iinfo(np.int16).max else np.int32)
        return allocate(num_values, np.float32), columns

    def _choose(self) -> Place:
        dense, sparse = self._sizes()
        if dense <= self.memory_bytes and (dense <= SMALL_BYTES or dense <= sparse):
            return "dense memory"
        return "sparse memory" if sparse <= self.memory_bytes else "disk"

    def _sizes(self) -> tuple[int, int]:
        """Bytes of all rows, dense and sparse."""
        return self.num_cells * self.num_genes * 4, self._num_values * BYTES_PER_VALUE + self.num_cells * 8

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dense": None, "_sparse": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _DenseMemory:
    """Collects blocks as one dense matrix."""

    def __init__(self, num_cells: int, num_genes: int):
        self._matrix = np.zeros((num_cells, num_genes), dtype=np.float32)
        self._end = 0

    def append(self, block: sp.csr_matrix) -> None:
        block.toarray(out=self._matrix[self._end : self._end + block.shape[0]])
        self._end += block.shape[0]

    def finish(self) -> np.ndarray:
        return self._matrix


class _SparseMemory:
    """Collects blocks as one CSR matrix, in place: at no time is a value held twice."""

    def __init__(self, num_values: int, num_genes: int):
        self._values = np.empty(num_values, dtype=np.float32)
        self._columns = np.empty(num_values, dtype=np.int32)
        self._indptr = [np.zeros(1, dtype=np.int64)]
        self._end = 0
        self._num_genes = num_genes

    def append(self, block: sp.csr_matrix) -> None:
        end = self._end + block.nnz
        self._values[self._end : end] = block.data
        self._columns[self._end : end] = block.indices
        self._indptr.append(block.indptr[1:].astype(np.int64) + self._end)
        self._end = end

    def finish(self) -> sp.csr_matrix:
        indptr = np.concatenate(self._indptr)
        shape = (len(indptr) - 1, self._num_genes)
        return sp.csr_matrix((self._values[: self._end], self._columns[: self._end], indptr), shape=shape, copy=False)
