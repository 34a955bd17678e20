"""`obs` columns of an h5ad as integer codes, read without holding a string per cell in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from steval.errors import DataError

BLOCK_ROWS = 1 << 17

StoredTable = h5py.Group | pd.DataFrame
"""`obs`: in a file (that of AnnData 0.7 has another layout and is read whole), or in memory."""


@dataclass(frozen=True)
class CodedColumn:
    """One column of N cells: sorted distinct names and a code for each cell."""

    names: tuple[str, ...]
    codes: np.ndarray
    """int32 `[N]` into `names`."""

    @classmethod
    def single(cls, name: str, num_cells: int) -> "CodedColumn":
        """The same name for every cell."""
        return cls((name,), np.zeros(num_cells, dtype=np.int32))

    def recoded(self, names: Sequence[str]) -> np.ndarray:
        """Codes of the same cells into other `names`, which hold all of these."""
        position = {name: code for code, name in enumerate(names)}
        return np.array([position[name] for name in self.names], dtype=np.int32)[self.codes]


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


def read_coded(obs: StoredTable, name: str, source: str) -> CodedColumn:
    """One column coded; cells without a label are a `DataError`."""
    frame = _frame(obs)
    if frame is not None:
        return _coded_values(frame[name], name, source)
    stored = obs[name]
    kind = stored.attrs.get("encoding-type", "")
    if kind == "categorical":
        categories = [str(value) for value in _read(stored["categories"])]
        codes = stored["codes"][:].astype(np.int32)
    elif kind in ("string-array", "array"):
        categories, codes = _code_blocks(stored)
    else:
        return _coded_values(_read(stored), name, source)
    return _sorted_used(categories, codes, name, source)


def _frame(obs: StoredTable) -> pd.DataFrame | None:
    """The table in memory, unless its columns can be read one by one."""
    if isinstance(obs, pd.DataFrame):
        return obs
    return None if obs.attrs.get("encoding-version") == "0.2.0" else _read(obs)


def _read(stored: h5py.Group | h5py.Dataset) -> Any:
    return ad.io.read_elem(stored)


def _coded_values(values: Any, name: str, source: str) -> CodedColumn:
    labels = pd.Categorical(pd.Series(values))
    return _sorted_used([str(value) for value in labels.categories], labels.codes.astype(np.int32), name, source)


def _sorted_used(categories: Sequence[str], codes: np.ndarray, name: str, source: str) -> CodedColumn:
    """Only names that occur, sorted; names that are equal as text share a code."""
    unlabelled = int((codes < 0).sum())
    if unlabelled:
        raise DataError(
            f"{source}: {unlabelled} of {len(codes)} cells have no value in obs column {name!r}; drop or label them"
        )
    used = np.bincount(codes, minlength=len(categories)) > 0
    names = sorted({name for name, occurs in zip(categories, used, strict=True) if occurs})
    position = {name: code for code, name in enumerate(names)}
    new_code = np.array([position.get(name, -1) for name in categories], dtype=np.int32)
    return CodedColumn(tuple(names), new_code[codes])


def _code_blocks(stored: h5py.Dataset) -> tuple[list[str], np.ndarray]:
    text = stored.asstr() if h5py.check_string_dtype(stored.dtype) else stored
    known: dict[str, int] = {}
    codes = np.empty(stored.shape[0], dtype=np.int32)
    for start in range(0, stored.shape[0], BLOCK_ROWS):
        block_codes, values = pd.factorize(pd.Series(text[start : start + BLOCK_ROWS]))
        position = np.array([known.setdefault(str(value), len(known)) for value in values] + [-1], dtype=np.int32)
        codes[start : start + BLOCK_ROWS] = position[block_codes]
    return list(known), codes
