"""A plain copy of X by rows, for data that is too large for memory and stored in a way that scattered rows are slow to read.

CSC has no rows at all, and a compressed file unpacks thousands of values for each cell. Both become a flat CSR file in a
directory of the user's choice, made once and found again by the source's path, size and time. Memory stays within the
budget: CSC is dealt out to buckets of rows on disk, each of which is sorted by itself.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp

from steval.data.disk_files import new_hdf5
from steval.data.files import ScratchDirectory, atomic_path, require_directory
from steval.data.outputs import real_path
from steval.data.rows.matrix import StoredMatrix
from steval.data.rows.obsm import ObsmBlock
from steval.data.rows.open_file import OpenFile
from steval.data.rows.sources import Rows, StoredRows
from steval.data.rows.unreadable import reading
from steval.errors import DataError
from steval.logs import progress_bar
from steval.wording import counted, memory_size

BLOCK_VALUES = 1 << 22
SORTING_BYTES = 1 << 28
"""Memory for sorting a temporary copy."""
SORT_BYTES_PER_VALUE = 40
"""Memory that sorting a bucket takes for each value: numbers, order, copies."""


def grouped_rows(source: StoredRows, codes: np.ndarray) -> Rows:
    """`source`, or a temporary copy of it by rows where reading groups of equal `codes [n]` would unpack values many times."""
    matrix = source.matrix
    scattered = matrix.is_compressed and matrix.layout == "csr" and _is_scattered(codes)
    return _CopiedRows(source) if matrix.layout == "csc" or scattered else source


class _CopiedRows:
    """Rows of a temporary copy; obsm from the file itself."""

    def __init__(self, source: StoredRows):
        self._source = source
        self._directory = ScratchDirectory("steval-rows")
        try:
            copy = cached_rows(source.matrix, self._directory.path, SORTING_BYTES)
            self._matrix = StoredMatrix(OpenFile(copy))
        except BaseException:
            self._directory.close()
            raise
        self.shape = source.shape
        self.obsm_keys = source.obsm_keys

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._matrix.rows(indices)

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        return self._source.obsm(key, indices)

    def close(self) -> None:
        self._source.close()
        self._matrix.close()
        self._directory.close()


def _is_scattered(codes: np.ndarray) -> bool:
    """Whether most cells have a neighbour of another code."""
    return len(codes) > 1 and float((codes[1:] != codes[:-1]).mean()) > 0.5


def cached_rows(matrix: StoredMatrix, cache_dir: Path, memory_bytes: int) -> Path:
    """An h5ad in `cache_dir` with a sparse X as plain CSR, the file's var and uns, no obs columns; made once."""
    require_directory(cache_dir)
    path = matrix.path
    state = path.stat()
    mark = hashlib.sha256(f"{real_path(path)}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:16]
    cache = cache_dir / f"{path.stem}-{mark}.rows.h5ad"
    if cache.is_file():
        return cache
    by_columns = matrix.layout == "csc"
    with h5py.File(path, "r") as source:
        stored = source["X"]
        num_bytes = matrix.num_values * (8 + stored["data"].dtype.itemsize)
        _require_space(cache_dir, num_bytes * (2 if by_columns else 1), path)
        with atomic_path(cache) as partial, new_hdf5(partial) as target:
            group = _frame(source, target, matrix)
            with progress_bar(matrix.num_values, f"copying {path.name} by rows", "value") as bar:
                by_rows = _csr_blocks(stored, group)
                blocks = _csc_blocks(stored, group, matrix, memory_bytes, cache_dir) if by_columns else by_rows
                for start, columns, values in blocks:
                    group["data"][start : start + len(values)] = values
                    group["indices"][start : start + len(values)] = columns
                    bar.update(len(values))
    return cache


def _frame(source: h5py.File, target: h5py.File, matrix: StoredMatrix) -> h5py.Group:
    """Everything of the copy but the values; its group X."""
    stored, shape = source["X"], matrix.shape
    target.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("var", "uns"):
        if name in source:
            source.copy(name, target)
    obs = target.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
    obs.create_dataset("_index", data=np.arange(shape[0])).attrs.update(
        {"encoding-type": "array", "encoding-version": "0.2.0"}
    )
    group = target.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    group.create_dataset("data", stored["data"].shape, stored["data"].dtype)
    group.create_dataset("indices", stored["data"].shape, np.int32)
    return group


Blocks = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""Position of the first value, columns, values."""


def _csr_blocks(stored: h5py.Group, group: h5py.Group) -> Blocks:
    group.create_dataset("indptr", data=stored["indptr"][:].astype(np.int64))
    for start in range(0, stored["data"].shape[0], BLOCK_VALUES):
        yield start, _block(stored["indices"], start), _block(stored["data"], start)


def _block(dataset: h5py.Dataset, start: int) -> np.ndarray:
    """Stored values from `start` on; damage is an error of the file that is read, not of the copy that is written."""
    with reading(f"{dataset.file.filename} is damaged: {dataset.name} cannot be read"):
        return dataset[start : start + BLOCK_VALUES]


def _csc_blocks(
    stored: h5py.Group, group: h5py.Group, matrix: StoredMatrix, memory_bytes: int, work_dir: Path
) -> Blocks:
    num_cells, num_values = matrix.shape[0], stored["data"].shape[0]
    lengths = np.zeros(num_cells, dtype=np.int64)
    for start in range(0, num_values, BLOCK_VALUES):
        rows = _block(stored["indices"], start)
        if rows.min() < 0 or rows.max() >= num_cells:
            raise DataError(f"{matrix.path} is damaged: X holds values outside its {counted(num_cells, 'row')}")
        lengths += np.bincount(rows, minlength=num_cells)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    group.create_dataset("indptr", data=indptr)
    per_bucket = max(memory_bytes // SORT_BYTES_PER_VALUE, int(lengths.max(initial=1)))
    edges = np.unique(
        np.append(np.searchsorted(indptr, np.arange(0, num_values, per_bucket), side="right") - 1, num_cells)
    )
    with ScratchDirectory("buckets", work_dir) as directory:
        buckets = [directory / str(number) for number in range(len(edges) - 1)]
        _deal(stored, edges, buckets)
        record = _record(stored)
        for path, (first, _) in zip(buckets, pairwise(edges.tolist()), strict=True):
            entries = np.fromfile(path, dtype=record)
            path.unlink()
            entries = entries[np.argsort(entries["row"], kind="stable")]
            yield int(indptr[first]), entries["column"], entries["value"]


def _deal(stored: h5py.Group, edges: np.ndarray, buckets: list[Path]) -> None:
    """Append each value, with its row and column, to the bucket of its row; columns ascend within a bucket."""
    indptr = stored["indptr"][:].astype(np.int64)
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in buckets]
        for start in range(0, stored["data"].shape[0], BLOCK_VALUES):
            rows = _block(stored["indices"], start)
            entries = np.empty(len(rows), dtype=_record(stored))
            entries["row"] = rows
            entries["column"] = np.searchsorted(indptr, np.arange(start, start + len(rows)), side="right") - 1
            entries["value"] = _block(stored["data"], start)
            bucket = np.searchsorted(edges, rows, side="right") - 1
            order = np.argsort(bucket, kind="stable")
            ends = np.cumsum(np.bincount(bucket, minlength=len(buckets)))
            for file, piece in zip(files, np.split(entries[order], ends[:-1]), strict=True):
                piece.tofile(file)


def _record(stored: h5py.Group) -> np.dtype:
    return np.dtype([("row", np.int32), ("column", np.int32), ("value", stored["data"].dtype)])


def _require_space(directory: Path, num_bytes: int, path: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise DataError(
            f"a copy of {path} by rows needs {memory_size(num_bytes)}, {directory} has {memory_size(free)} free; name another "
            "directory as cache_dir, or store X as uncompressed CSR"
        )
