"""`obs` columns of an h5ad as integer codes, read without holding a string per cell in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from steval.data.labels import label_codes
from steval.errors import DataError

BLOCK_ROWS = 1 << 17

StoredTable = h5py.Group | pd.DataFrame
"""`obs`: in a file (that of AnnData 0.7 has another layout and is read whole), or in memory."""


@dataclass(frozen=True)
class CodedColumn:
    """One column of N cells: sorted distinct names and a code for each cell."""

    names: tuple[str, ...]
    codes: np.ndarray
    """int32 `[N]` into `names`; -1: the cell has no label."""

    @classmethod
    def single(cls, name: str, num_cells: int) -> "CodedColumn":
        """The same name for every cell."""
        return cls((name,), np.zeros(num_cells, dtype=np.int32))

    def recoded(self, names: Sequence[str]) -> np.ndarray:
        """Codes of the same cells into other `names`, which hold all of these."""
        position = {name: code for code, name in enumerate(names)}
        return np.array([*(position[name] for name in self.names), -1], dtype=np.int32)[self.codes]

    @property
    def missing(self) -> np.ndarray:
        """bool `[N]`: cells without a label."""
        return self.codes < 0

    def filled(self, name: str) -> "CodedColumn":
        """The same with `name` for cells without a label."""
        if not self.missing.any():
            return self
        names = tuple(sorted({*self.names, name}))
        codes = self.recoded(names)
        return CodedColumn(names, np.where(codes < 0, names.index(name), codes).astype(np.int32))


def column_names(obs: StoredTable) -> list[str]:
    """Names of the columns of a stored data frame, in their order."""
    frame = _frame(obs)
    if frame is not None:
        return [str(name) for name in frame.columns]
    return [str(name) for name in obs.attrs.get("column-order", [])]


def num_rows(obs: StoredTable) -> int:
    """Number of cells of a stored data frame."""
    frame = _frame(obs)
    if frame is not None:
        return len(frame)
    index = obs[obs.attrs["_index"]]
    return int(index.shape[0]) if isinstance(index, h5py.Dataset) else len(_read(index))


def row_names(obs: StoredTable) -> Iterator[np.ndarray]:
    """Names of the cells, as blocks of text."""
    frame = _frame(obs)
    if frame is not None:
        yield frame.index.to_numpy().astype(str).astype(object)
        return
    index = obs[obs.attrs["_index"]]
    if not isinstance(index, h5py.Dataset):
        yield np.asarray(_read(index)).astype(str).astype(object)
        return
    text = index.asstr() if h5py.check_string_dtype(index.dtype) else index
    for start in range(0, index.shape[0], BLOCK_ROWS):
        yield np.asarray(text[start : start + BLOCK_ROWS]).astype(str).astype(object)


def read_coded(obs: StoredTable, name: str) -> CodedColumn:
    """One column coded, by the rule of `data.labels`; the caller decides what cells without a label mean."""
    frame = _frame(obs)
    if frame is not None:
        return _sorted_used(*label_codes(frame[name]))
    stored = obs[name]
    kind = stored.attrs.get("encoding-type", "")
    if kind == "categorical":
        names, position = label_codes(np.asarray(_read(stored["categories"]), dtype=object))
        codes = stored["codes"][:].astype(np.int64)
        if len(codes) and (codes.min() < -1 or codes.max() >= len(position)):
            raise DataError(f"{stored.file.filename} is damaged: obs column {name!r} holds codes of no category")
        return _sorted_used(names, np.append(position, -1)[codes])
    if kind in ("string-array", "array"):
        return _sorted_used(*_code_blocks(stored))
    return _sorted_used(*label_codes(_read(stored)))


def _frame(obs: StoredTable) -> pd.DataFrame | None:
    """The table in memory, unless its columns can be read one by one."""
    if isinstance(obs, pd.DataFrame):
        return obs
    return None if obs.attrs.get("encoding-version") == "0.2.0" else _read(obs)


def _read(stored: h5py.Group | h5py.Dataset) -> Any:
    return ad.io.read_elem(stored)


def _sorted_used(names: Sequence[str], codes: np.ndarray) -> CodedColumn:
    """Only names that occur, sorted."""
    used = np.unique(codes[codes >= 0])
    order = sorted((names[code], code) for code in used.tolist())
    new_code = np.full(len(names) + 1, -1, dtype=np.int32)
    for position, (_, code) in enumerate(order):
        new_code[code] = position
    return CodedColumn(tuple(name for name, _ in order), new_code[codes])


def _code_blocks(stored: h5py.Dataset) -> tuple[list[str], np.ndarray]:
    text = stored.asstr() if h5py.check_string_dtype(stored.dtype) else stored
    known: dict[str, int] = {}
    codes = np.empty(stored.shape[0], dtype=np.int64)
    for start in range(0, stored.shape[0], BLOCK_ROWS):
        names, block_codes = label_codes(text[start : start + BLOCK_ROWS])
        position = np.array([known.setdefault(name, len(known)) for name in names] + [-1], dtype=np.int64)
        codes[start : start + BLOCK_ROWS] = position[block_codes]
    return list(known), codes
