"""Rows of `obsm` elements: arrays, sparse matrices and tables, as they are kept or as dense float32."""

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.rows.csr import number_type
from steval.data.rows.matrix import read_element
from steval.data.rows.open_file import OpenFile
from steval.data.rows.unreadable import reading
from steval.errors import DataError

ObsmBlock = np.ndarray | sp.csr_matrix | pd.DataFrame


class StoredObsm:
    """The obsm elements of a file by key; iterating gives the keys."""

    def __init__(self, file: OpenFile):
        self._file = file
        with reading(f"{file.path} is damaged: obsm cannot be read"):
            stored = file.handle.get("obsm")
            self._keys = list(stored) if isinstance(stored, h5py.Group) else []
        self._read: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def is_array(self, key: str) -> bool:
        """Whether the element is a stored matrix of numbers: its rows are then read one by one."""
        with reading(f"{self._file.path}: obsm[{key!r}] cannot be read"):
            stored = self._file.handle["obsm"][key]
        return isinstance(stored, h5py.Dataset) and stored.ndim == 2 and stored.dtype.kind in "fiu"

    def rows(self, key: str, indices: np.ndarray) -> ObsmBlock:
        """Rows `indices [n]` in that order, repeats allowed; what is no plain array is read whole, once."""
        if not self.is_array(key):
            if key not in self._read:
                self._read[key] = self._whole(key)
            return take_rows(self._read[key], indices)
        array = self._file.array(f"obsm/{key}")
        wanted, position = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        values = np.empty((len(wanted), array.shape[1]), dtype=array.dtype)
        array.read(wanted, wanted + 1, values)
        return values[position]

    def _whole(self, key: str) -> Any:
        with reading(f"{self._file.path}: obsm[{key!r}] cannot be read"):
            return read_element(self._file.handle["obsm"][key])


def take_rows(element: Any, indices: np.ndarray) -> ObsmBlock:
    """Rows of one element in the kind that it has; sparse ones as CSR."""
    if isinstance(element, pd.DataFrame):
        return element.iloc[indices]
    if sp.issparse(element):
        return sp.csr_matrix(element)[indices]
    return np.asarray(element)[indices]


def join_blocks(blocks: Sequence[ObsmBlock]) -> ObsmBlock:
    """The rows of several files one after the other."""
    if all(isinstance(block, pd.DataFrame) for block in blocks):
        return pd.concat([pd.DataFrame(block) for block in blocks])
    if all(sp.issparse(block) for block in blocks):
        return sp.csr_matrix(sp.vstack(blocks, format="csr"))
    return np.concatenate([dense_rows(block, "obsm") for block in blocks])


def dense_rows(block: ObsmBlock, what: str) -> np.ndarray:
    """A block as float32 `[n, D]`; text, and what is no matrix, is a `DataError` that names it as `what`."""
    if isinstance(block, pd.DataFrame):
        text = [str(name) for name, kind in block.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
        if text:
            raise DataError(
                f"{what} is a table with columns that are no numbers ({', '.join(text[:5])}); a matrix of numbers is needed"
            )
        return block.to_numpy(dtype=np.float32, na_value=np.nan)
    values = block.toarray() if isinstance(block, sp.csr_matrix) else np.asarray(block)
    number_type(values.dtype, what)
    if values.ndim != 2:
        raise DataError(
            f"{what} is no matrix but an array of shape {values.shape}; a row of numbers per cell is needed"
        )
    return values.astype(np.float32, copy=False)
