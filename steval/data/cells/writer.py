"""Streaming h5ad writer: cells are appended block by block, so that memory stays flat for any number of cells."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.record import KEY
from steval.data.disk_files import DiskFile
from steval.data.files import atomic_path
from steval.errors import NotFiniteError
from steval.wording import counted

OutputLayout = Literal["csr", "dense"]
Compression = Literal["gzip", "lzf", "none"]
CHUNK_VALUES = 1 << 18
H5AD_SUFFIXES = (".h5ad", ".h5")
"""Names that promise what is written."""


def require_finite(values: np.ndarray | sp.csr_matrix, what: str) -> None:
    """Every file that steval writes holds finite values: others are a `NotFiniteError` that counts them.

    `what` says whose values they are and ends as a sentence would go on: "X of a.h5ad".
    """
    plain = values.data if isinstance(values, sp.csr_matrix) else np.asarray(values)
    # the largest and the smallest tell, without an array of their own: NaN wins in both
    if not plain.size or plain.dtype.kind != "f" or bool(np.isfinite(plain.max()) and np.isfinite(plain.min())):
        return
    count = int((~np.isfinite(plain)).sum())
    raise NotFiniteError(
        f"{what}: {count} of {counted(plain.size, 'value')} are NaN or infinite, and no such file is written"
    )


class CellWriter:
    """Write an h5ad of float32 cells `[n, G]` by blocks; the file appears under its name only when `with` ends well.

    Blocks and matrices that are not finite are a `NotFiniteError`.

    `layout` csr keeps non-zero values only; dense keeps all. `obs` of each block is a frame whose index names the cells, or a
    mapping of column → values (cells are numbered).
    """

    def __init__(
        self,
        path: Path,
        genes: Sequence[str],
        record: Mapping[str, Any],
        *,
        layout: OutputLayout = "csr",
        compression: Compression = "gzip",
        var: pd.DataFrame | None = None,
    ):
        self.path = Path(path)
        self._genes = list(genes)
        self._record = dict(record)
        self._layout = layout
        self._filters: dict[str, Any] = _FILTERS[compression]
        self._var = var if var is not None else pd.DataFrame(index=pd.Index(self._genes, name="gene"))
        self._obs: list[pd.DataFrame] = []
        self.obsm: dict[str, Any] = {}
        """Matrices with a row per cell, to be set before the end."""
        self.num_cells = 0
        self._num_values = 0
        self._indptr: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self.path))
            self._disk = DiskFile(partial)
            stack.callback(self._disk.check)
            stack.callback(self._disk.close)
            self._handle = stack.enter_context(h5py.File(self._disk, "w"))
            self._handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            if self._layout == "dense":
                self._create_dense()
            else:
                self._create_csr()
            self._stack = stack.pop_all()
        return self

    def append(self, block: np.ndarray | sp.csr_matrix, obs: Mapping[str, Any] | pd.DataFrame) -> None:
        """Add cells: `block [n, G]` in the scale of the record, `obs` with n values a column."""
        frame = numbered_obs(obs, self.num_cells)
        if block.shape != (len(frame), len(self._genes)):
            raise ValueError(
                f"block of shape {block.shape} for {counted(len(frame), 'cell')} × {counted(len(self._genes), 'gene')}"
            )
        require_finite(block, f"cells {self.num_cells} to {self.num_cells + len(frame) - 1} of {self.path}")
        if self._layout == "dense":
            self._append_dense(block)
        else:
            self._append_csr(sp.csr_matrix(block))
        self._disk.check()
        self._obs.append(frame)
        self.num_cells += len(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            try:
                self._finish()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._stack.__exit__(kind, error, trace)

    def _create_csr(self) -> None:
        group = self._handle.create_group("X")
        chunks = (CHUNK_VALUES,)
        group.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=chunks, **self._filters)
        group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=chunks, **self._filters)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})

    def _create_dense(self) -> None:
        num_genes = len(self._genes)
        rows = max(1, CHUNK_VALUES // num_genes)
        dataset = self._handle.create_dataset(
            "X", (0, num_genes), np.float32, maxshape=(None, num_genes), chunks=(rows, num_genes), **self._filters
        )
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def _append_csr(self, block: sp.csr_matrix) -> None:
        group = self._handle["X"]
        end = self._num_values + block.nnz
        for name, values in (("data", block.data), ("indices", block.indices)):
            group[name].resize((end,))
            group[name][self._num_values : end] = values
        self._indptr.append(block.indptr[1:].astype(np.int64) + self._num_values)
        self._num_values = end

    def _append_dense(self, block: np.ndarray | sp.csr_matrix) -> None:
        dataset = self._handle["X"]
        dataset.resize((self.num_cells + block.shape[0], len(self._genes)))
        dataset[self.num_cells :] = block if isinstance(block, np.ndarray) else block.toarray()

    def _finish(self) -> None:
        for key, matrix in self.obsm.items():
            require_finite(matrix, f"obsm[{key!r}] of {self.path}")
        if self._layout == "csr":
            group = self._handle["X"]
            group.create_dataset("indptr", data=np.concatenate(self._indptr))
            group.attrs["shape"] = np.array([self.num_cells, len(self._genes)], dtype=np.int64)
        obs = joined_obs(self._obs)
        for key, element in self.obsm.items():
            if isinstance(element, pd.DataFrame):
                self.obsm[key] = element.set_axis(obs.index)
        ad.io.write_elem(self._handle, "obs", obs)
        ad.io.write_elem(self._handle, "var", self._var)
        ad.io.write_elem(self._handle, "uns", {KEY: self._record})
        ad.io.write_elem(self._handle, "obsm", self.obsm)
        for key in ("varm", "obsp", "varp", "layers"):
            ad.io.write_elem(self._handle, key, {})


def numbered_obs(obs: Mapping[str, Any] | pd.DataFrame, start: int) -> pd.DataFrame:
    """`obs` as a frame; the cells of a mapping are numbered from `start` on."""
    frame = pd.DataFrame(obs)
    if not isinstance(obs, pd.DataFrame):
        frame.index = pd.RangeIndex(start, start + len(frame))
    return frame


def joined_obs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The `obs` of several blocks in types that h5ad holds, cells named by text."""
    obs = pd.concat(frames) if frames else pd.DataFrame()
    obs.index = obs.index.astype(str)
    obs.index.name = None
    for column in obs.columns:
        obs[column] = _writable(obs[column])
    return obs


def _writable(values: pd.Series) -> Any:
    """A column in a type that h5ad holds: numbers as they are, all else as text; missing values stay missing."""
    kind = values.dtype
    numeric = pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind)
    texts = isinstance(kind, pd.CategoricalDtype) and all(isinstance(name, str) for name in kind.categories)
    if numeric or texts:
        return values
    return pd.Categorical(values.astype(object).where(values.notna(), None).map(str, na_action="ignore"))


_FILTERS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "lzf": {"compression": "lzf", "shuffle": True},
    "none": {},
}
