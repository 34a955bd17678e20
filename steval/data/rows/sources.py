"""Where a `CellFile` gets its rows from: a file, memory, or other rows selected, transformed, stacked or embedded."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from steval.data.rows.csr import canonical, csr_of, plain_numbers
from steval.data.rows.matrix import StoredMatrix
from steval.data.rows.obsm import ObsmBlock, StoredObsm, dense_rows, join_blocks, take_rows


class Rows(Protocol):
    """Rows of cells × genes and of obsm matrices, by row number in any order, repeats allowed."""

    shape: tuple[int, int]
    obsm_keys: list[str]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        """CSR `[n, G]` in canonical form (see `csr`), in the order of `indices [n]`."""
        ...

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        """Rows of an obsm element as it is kept: an array, a sparse matrix or a table."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class StoredRows:
    """Rows of a file: its matrix, and its obsm elements (those of `obsm`, where the file's own are in a form of old)."""

    def __init__(self, matrix: StoredMatrix, obsm: "StoredObsm | Mapping[str, Any]"):
        self.matrix = matrix
        self._obsm = obsm
        self.shape = matrix.shape
        self.obsm_keys = list(obsm)

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self.matrix.rows(indices)

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        if isinstance(self._obsm, StoredObsm):
            return self._obsm.rows(key, indices)
        return take_rows(self._obsm[key], indices)

    def close(self) -> None:
        self.matrix.close()


class MemoryRows:
    """Rows of a matrix in memory, dense or sparse, in whatever form; it is left as it is."""

    def __init__(self, matrix: Any, obsm: Mapping[str, Any], name: str):
        if sp.issparse(matrix):
            values = plain_numbers(matrix.data, f"{name}: X")
            matrix = matrix if values is matrix.data else matrix.astype(values.dtype)
            self._matrix = canonical(sp.csr_matrix(matrix), name)
        else:
            self._matrix = csr_of(np.ascontiguousarray(plain_numbers(np.asarray(matrix), f"{name}: X")))
        self._obsm = obsm
        self.shape = self._matrix.shape
        self.obsm_keys = list(obsm)

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._matrix[indices]

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        return take_rows(self._obsm[key], indices)

    def close(self) -> None:
        """Nothing is open."""


class EmbeddedRows:
    """The rows of an obsm matrix in place of X: what a network reads that takes an embedding."""

    def __init__(self, source: Rows, key: str, name: str):
        self._source = source
        self._key = key
        self._name = f"obsm[{key!r}] of {name}"
        self.obsm_keys = source.obsm_keys
        self.shape = (source.shape[0], dense_rows(source.obsm(key, np.arange(1)), self._name).shape[1])

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return csr_of(dense_rows(self._source.obsm(self._key, indices), self._name))

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        return self._source.obsm(key, indices)

    def close(self) -> None:
        self._source.close()


class SelectedRows:
    def __init__(self, source: Rows, selected: np.ndarray):
        self._source = source
        self._selected = selected
        self.shape = (len(selected), source.shape[1])
        self.obsm_keys = source.obsm_keys

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._source.rows(self._selected[indices])

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        return self._source.obsm(key, self._selected[indices])

    def close(self) -> None:
        self._source.close()


class TransformedRows:
    def __init__(self, source: Rows, transform: Callable[[sp.csr_matrix], sp.csr_matrix], num_genes: int):
        self._source = source
        self._transform = transform
        self.shape = (source.shape[0], num_genes)
        self.obsm_keys = source.obsm_keys

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        return self._transform(self._source.rows(indices))

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        return self._source.obsm(key, indices)

    def close(self) -> None:
        self._source.close()


class StackedRows:
    def __init__(self, sources: list[Rows]):
        self._sources = sources
        self._starts = np.concatenate([[0], np.cumsum([source.shape[0] for source in sources])])
        self.shape = (int(self._starts[-1]), sources[0].shape[1])
        self.obsm_keys = [key for key in sources[0].obsm_keys if all(key in source.obsm_keys for source in sources)]

    def rows(self, indices: np.ndarray) -> sp.csr_matrix:
        pieces = [source.rows(local) for source, local in self._split(indices)]
        return sp.csr_matrix(sp.vstack(pieces, format="csr"))[self._restore(indices)]

    def obsm(self, key: str, indices: np.ndarray) -> ObsmBlock:
        joined = join_blocks([source.obsm(key, local) for source, local in self._split(indices)])
        return take_rows(joined, self._restore(indices))

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _split(self, indices: np.ndarray) -> list[tuple[Rows, np.ndarray]]:
        owner = self._owner(indices)
        return [(source, indices[owner == i] - self._starts[i]) for i, source in enumerate(self._sources)]

    def _restore(self, indices: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(self._owner(indices), kind="stable"), kind="stable")
