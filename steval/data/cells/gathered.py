"""Cells gathered in memory, block by block, with what `CellWriter` takes: for notebooks, which want an AnnData and no file."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.record import KEY
from steval.data.cells.writer import joined_obs, numbered_obs, require_finite


class CellSink(Protocol):
    """What takes cells by blocks: a `CellWriter`, or `GatheredCells`."""

    num_cells: int
    obsm: dict[str, Any]

    def append(self, block: np.ndarray | sp.csr_matrix, obs: Mapping[str, Any] | pd.DataFrame) -> None:
        """Add cells: `block [n, G]` in the scale of the record, `obs` with n values a column."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class GatheredCells:
    """As `CellWriter`, in memory: `adata` (float32 CSR) is there when `with` has ended well."""

    def __init__(self, genes: Sequence[str], record: Mapping[str, Any], *, var: pd.DataFrame | None = None):
        self._record = dict(record)
        self._var = var if var is not None else pd.DataFrame(index=pd.Index(list(genes), name="gene"))
        self._obs: list[pd.DataFrame] = []
        self._blocks: list[sp.csr_matrix] = []
        self.obsm: dict[str, Any] = {}
        self.num_cells = 0
        self._adata: ad.AnnData | None = None

    @property
    def adata(self) -> ad.AnnData:
        """The cells."""
        assert self._adata is not None, "the cells are there when `with` has ended"
        return self._adata

    def append(self, block: np.ndarray | sp.csr_matrix, obs: Mapping[str, Any] | pd.DataFrame) -> None:
        """As `CellWriter.append`."""
        frame = numbered_obs(obs, self.num_cells)
        require_finite(block, f"cells {self.num_cells} to {self.num_cells + len(frame) - 1}")
        self._blocks.append(sp.csr_matrix(block, dtype=np.float32))
        self._obs.append(frame)
        self.num_cells += len(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        for key, matrix in self.obsm.items():
            require_finite(matrix, f"obsm[{key!r}]")
        empty = sp.csr_matrix((0, len(self._var)), dtype=np.float32)
        cells = sp.vstack(self._blocks, format="csr") if self._blocks else empty
        self._blocks.clear()
        obs = joined_obs(self._obs)
        self._adata = ad.AnnData(X=cells, obs=obs, var=self._var, uns={KEY: self._record}, obsm=self.obsm)
