"""X of one h5ad by rows: the only reader of stored expression, whatever the layout, the filters and the number type.

    matrix = StoredMatrix(OpenFile(path))
    matrix.rows(indices)                      CSR [n, G] in canonical form, for `CellFile` (and by it for the evaluator)
    matrix.gather(rows, out, places, ...)     dense float32, aligned and lognormed on the way, for the training loader
    matrix.stored(rows, position)             its values as they are stored, for the loader's packed batches

Layouts: CSR and dense are read row by row (plain bytes past the HDF5 library, see `FlatArray`); CSC has no rows and is
turned into CSR in memory once, unless `copied` gave it a copy by rows. Another container (Zarr) offers the same by a
class with `sources.Rows`' methods.
"""

import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

from steval.data.rows import densify
from steval.data.rows.csr import LARGEST_COLUMN, canonical, csr_of, number_type, outside, plain_numbers
from steval.data.rows.flat_array import FlatArray
from steval.data.rows.open_file import OpenFile
from steval.data.rows.unreadable import reading
from steval.errors import DataError

MatrixLayout = Literal["csr", "csc", "dense"]


class RowValues(NamedTuple):
    """Rows one after the other, columns ascending."""

    values: np.ndarray
    """float32, as stored."""
    columns: np.ndarray
    """int32, those of the file."""
    lengths: np.ndarray
    """int64: values of each row."""
    kept: np.ndarray
    """int64: those of each row whose column is asked for."""


class StoredMatrix:
    """X of one file. Threads may share it; forked and unpickled copies open the file anew."""

    def __init__(self, file: OpenFile):
        self._file = file
        stored = file.handle["X"]
        self.layout = _layout(stored, file.path)
        values = stored if self.layout == "dense" else stored["data"]
        self.dtype = number_type(values.dtype, f"{file.path}: X")
        """Type of the values that `rows` gives: the stored one, but float32 for float16, and so on (`csr.number_type`)."""
        self.is_compressed = bool(values.id.get_create_plist().get_nfilters())
        """Whether the values pass a filter."""
        self.num_values = int(np.prod(values.shape))
        """Values that are stored, repeated places and zeros included."""
        shape = stored.shape if self.layout == "dense" else _sparse_shape(stored)
        if len(shape) != 2:
            raise DataError(f"{file.path}: X is no matrix, its shape is {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]))
        self._start()
        if self.layout != "dense":
            self._require_pointers(stored)

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def has_plain_rows(self) -> bool:
        """Whether scattered rows cost no more than their bytes: they lie by rows, unfiltered."""
        return self.layout != "csc" and self._values.is_plain and (self.layout == "dense" or self._columns.is_plain)

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        """Rows `indices [n]` in that order, repeats allowed, CSR `[n, G]` in canonical form and in `dtype`."""
        indices = np.asarray(indices, dtype=np.int64)
        if self.layout == "csc":
            return self._by_columns()[indices]
        if self.has_plain_rows or not (np.diff(indices) <= 0).any():
            return self._read(indices)
        wanted, position = np.unique(indices, return_inverse=True)
        return self._read(wanted)[position]

    def gather(
        self,
        rows: np.ndarray,
        out: np.ndarray,
        places: np.ndarray,
        position: np.ndarray | None,
        target_sum: float | None,
    ) -> None:
        """`out[places[i]]` (float32 `[m, D]`, zero or not) becomes row `rows[i]`.

        `position [G]` is the column of `out` of each stored column, -1 for none (none at all: the same columns). With
        `target_sum` the values are counts and become lognorm, the total taken over all stored columns.
        """
        order = np.argsort(rows, kind="stable")
        rows, places = rows[order], places[order]
        if target_sum is not None and position is None:
            position = np.arange(self.shape[1])
        if self.layout == "dense":
            self._gather_dense(rows, out, places, position, target_sum)
            return
        found = densify.UNSORTED
        if self.layout == "csr":
            lengths, values, columns = self._read_csr(rows)
            found = self._scatter(out, places, lengths, values, columns, position, target_sum)
        if found == densify.UNSORTED:
            block = self.rows(rows)
            found = self._scatter(
                out, places, np.diff(block.indptr).astype(np.int64), block.data, block.indices, position, target_sum
            )
        if found != densify.FINE:
            raise outside(str(self.path), self.shape[1])

    def stored(self, rows: np.ndarray, position: np.ndarray) -> RowValues:
        """The stored values of `rows`, in memory that this thread's next call writes anew; `position` as for `gather`, empty for
        none; columns outside the matrix are a `DataError`."""
        kept = np.empty(len(rows), dtype=np.int64)
        found = densify.UNSORTED
        if self.layout == "csr":
            lengths, values, columns = self._read_csr(rows)
            columns = _narrow(columns, self.path, self.shape[1])
            found = densify.count_kept(lengths, columns, self.shape[1], position, kept)
        if found == densify.UNSORTED:
            block = self.rows(rows)
            lengths, values, columns = np.diff(block.indptr).astype(np.int64), block.data, block.indices
            found = densify.count_kept(lengths, columns, self.shape[1], position, kept)
        if found != densify.FINE:
            raise outside(str(self.path), self.shape[1])
        return RowValues(values.astype(np.float32, copy=False), columns, lengths, kept)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def _values(self) -> FlatArray:
        return self._file.array("X" if self.layout == "dense" else "X/data")

    @property
    def _columns(self) -> FlatArray:
        return self._file.array("X/indices")

    @property
    def _indptr(self) -> np.ndarray:
        if self._pointers is None:
            with reading(f"{self.path} is damaged: the row pointers of X cannot be read"):
                self._pointers = self._file.handle["X/indptr"][:].astype(np.int64)
        return self._pointers

    def _read_csr(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths, values and columns of rows of a CSR matrix as the file has them, in this thread's scratch memory."""
        starts, stops = self._indptr[rows], self._indptr[rows + 1]
        values = self._buffer("values", int((stops - starts).sum()), self._values.dtype)
        columns = self._buffer("columns", len(values), self._columns.dtype)
        self._values.read(starts, stops, values)
        self._columns.read(starts, stops, columns)
        return stops - starts, values, columns

    def _read(self, indices: np.ndarray) -> sp.csr_matrix:
        if self.layout == "dense":
            dense = np.empty((len(indices), self.shape[1]), dtype=self._values.dtype)
            self._values.read(indices, indices + 1, dense)
            return csr_of(plain_numbers(dense, f"{self.path}: X"))
        starts, stops = self._indptr[indices], self._indptr[indices + 1]
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        values = np.empty(indptr[-1], dtype=self._values.dtype)
        columns = np.empty(indptr[-1], dtype=self._columns.dtype)
        self._values.read(starts, stops, values)
        self._columns.read(starts, stops, columns)
        return self._canonical(values, columns, indptr, len(indices))

    def _canonical(self, values: np.ndarray, columns: np.ndarray, indptr: np.ndarray, num_rows: int) -> sp.csr_matrix:
        columns = _narrow(columns, self.path, self.shape[1])
        matrix = sp.csr_matrix(
            (plain_numbers(values, f"{self.path}: X"), columns, indptr), shape=(num_rows, self.shape[1])
        )
        return canonical(matrix, str(self.path))

    def _scatter(
        self, out: np.ndarray, places: np.ndarray, lengths: np.ndarray, values: np.ndarray, columns: np.ndarray,
        position: np.ndarray | None, target_sum: float | None,
    ) -> int:  # fmt: skip
        begins = np.cumsum(lengths) - lengths
        values = values if values.dtype == np.float32 else values.astype(np.float32)
        arguments = (out, places, begins, lengths, values, _narrow(columns, self.path, self.shape[1]))
        if target_sum is not None:
            return densify.scatter_counts(*arguments, position, target_sum)
        if position is None:
            return densify.scatter_rows(*arguments, self.shape[1])
        return densify.scatter_aligned(*arguments, position)

    def _gather_dense(
        self,
        rows: np.ndarray,
        out: np.ndarray,
        places: np.ndarray,
        position: np.ndarray | None,
        target_sum: float | None,
    ) -> None:
        values = self._buffer("values", len(rows) * self.shape[1], self._values.dtype).reshape(len(rows), -1)
        self._values.read(rows, rows + 1, values)
        values = values.astype(np.float32, copy=False)
        if target_sum is not None:
            totals = values.sum(axis=1, dtype=np.float64)
            factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
            values = np.log1p(values * factors[:, None])
        if position is None:
            out[places] = values
            return
        kept = np.flatnonzero(position >= 0)
        gathered = np.zeros((len(rows), out.shape[1]), dtype=np.float32)
        gathered[:, position[kept]] = values[:, kept]
        out[places] = gathered

    def _by_columns(self) -> sp.csr_matrix:
        """The whole of a CSC matrix by rows, in memory."""
        if self._memory is None:
            stored = self._file.handle["X"]
            with reading(f"{self.path} is damaged: X cannot be read"):
                values, rows, pointers = stored["data"][:], stored["indices"][:], stored["indptr"][:]
            if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
                raise DataError(
                    f"{self.path} is damaged: X holds values outside its {self.shape[0]} × {self.shape[1]} shape"
                )
            values = plain_numbers(values, f"{self.path}: X")
            self._memory = canonical(sp.csc_matrix((values, rows, pointers), shape=self.shape).tocsr(), str(self.path))
        return self._memory

    def _require_pointers(self, stored: h5py.Group) -> None:
        num_pointers = self.shape[0 if self.layout == "csr" else 1] + 1
        num_values = min(len(stored["data"]), len(stored["indices"]))
        pointers = self._indptr
        if len(pointers) != num_pointers or pointers[0] != 0 or pointers[-1] > num_values:
            raise DataError(f"{self.path} is damaged: X does not have the values that its shape and row pointers say")
        if (np.diff(pointers) < 0).any():
            raise DataError(f"{self.path} is damaged: the row pointers of X decrease")

    def _buffer(self, name: str, size: int, dtype: Any) -> np.ndarray:
        """Scratch memory of this thread, kept from call to call: fresh pages would cost as much as the reading."""
        buffer = getattr(self._scratch, name, None)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size + size // 4, dtype=dtype)
            setattr(self._scratch, name, buffer)
        return buffer[:size]

    def _start(self) -> None:
        self._scratch = threading.local()
        self._pointers: np.ndarray | None = None
        self._memory: sp.csr_matrix | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_scratch", "_pointers", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def read_element(stored: Any) -> Any:
    """An element by its own encoding; typed loosely, since the encoding decides."""
    return ad.io.read_elem(stored)


def _layout(stored: h5py.Group | h5py.Dataset, path: Path) -> MatrixLayout:
    if isinstance(stored, h5py.Dataset):
        return "dense"
    kind = str(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", ""))).removesuffix("_matrix")
    if kind not in ("csr", "csc") or not {"data", "indices", "indptr"} <= set(stored):
        raise DataError(f"{path}: X is stored as {kind or 'an unknown kind'}; csr, csc and dense are read")
    return "csr" if kind == "csr" else "csc"


def _sparse_shape(stored: h5py.Group) -> Any:
    return stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))


def _narrow(columns: np.ndarray, path: Path, num_columns: int) -> np.ndarray:
    """Column numbers as int32, whatever their stored width."""
    if columns.dtype == np.int32:
        return columns
    if len(columns) and (columns.min() < 0 or columns.max() > LARGEST_COLUMN):
        raise outside(str(path), num_columns)
    return columns.astype(np.int32)
