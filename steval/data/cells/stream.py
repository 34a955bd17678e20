"""An h5ad as a stream of bytes that never lies on the disk as a whole: for archives that compress it.

HDF5 gives datasets of a known size their place before they are written. A skeleton with all but the cells is written, where they
belong it has holes that take no room on the disk, and `H5adStream` reads it from the start with the cells in the holes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.disk_files import new_hdf5
from steval.wording import counted

Blocks = Callable[[], Iterable[sp.csr_matrix]]
"""All cells in order, as CSR blocks in canonical form; called once for the values and once for their columns."""
PIECE = 1 << 20
LARGEST_INDEX = np.iinfo(np.int32).max


@dataclass(frozen=True)
class StreamedCells:
    """Cells whose numbers of values are known, but which are made block by block."""

    obs: pd.DataFrame
    genes: Sequence[str]
    row_sizes: np.ndarray
    """Stored values of each cell `[n]`."""
    dtype: Any
    blocks: Blocks

    @property
    def num_values(self) -> int:
        return int(self.row_sizes.sum())


class H5adStream:
    """The bytes of an h5ad with X as CSR, `obs` and the names of the genes; `skeleton` is a file that is written here and left."""

    def __init__(self, cells: StreamedCells, skeleton: Path):
        self._cells = cells
        self._skeleton = skeleton
        self._holes = _write_skeleton(cells, skeleton)
        self.size = skeleton.stat().st_size
        """Bytes in all."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All bytes in order."""
        with self._skeleton.open("rb") as handle:
            for offset, size, field, dtype in self._holes:
                yield from _read(handle, offset - handle.tell())
                written = 0
                for block in self._cells.blocks():
                    piece = np.ascontiguousarray(getattr(block, field), dtype=dtype)
                    written += piece.nbytes
                    yield piece.data.cast("B") if len(piece) else b""
                if written != size:
                    raise ValueError(f"the cells hold {counted(written, 'byte')} of {field}, {size} were announced")
                handle.seek(offset + size)
            yield from _read(handle, self.size - handle.tell())


def _write_skeleton(cells: StreamedCells, path: Path) -> list[tuple[int, int, str, Any]]:
    """Offset, size, field and type of what is left out, by offset."""
    indptr = np.concatenate([[0], np.cumsum(cells.row_sizes, dtype=np.int64)])
    with new_hdf5(path) as handle:
        handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = handle.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(cells.row_sizes), len(cells.genes)], dtype=np.int64)
        group.create_dataset("indptr", data=indptr if indptr[-1] > LARGEST_INDEX else indptr.astype(np.int32))
        ad.io.write_elem(handle, "obs", cells.obs)
        ad.io.write_elem(handle, "var", pd.DataFrame(index=pd.Index(list(cells.genes))))
        for key in ("uns", "obsm", "varm", "obsp", "varp", "layers"):
            ad.io.write_elem(handle, key, {})
        holes = []
        for field, dtype in (("data", np.dtype(cells.dtype)), ("indices", np.dtype(np.int32))):
            stored = group.create_dataset(field, (cells.num_values,), dtype, dcpl=_placed_at_once())
            if cells.num_values:
                holes.append((int(stored.id.get_offset()), cells.num_values * dtype.itemsize, field, dtype))
    return sorted(holes)


def _placed_at_once() -> Any:
    """A dataset that has its place in the file from the start, and nothing written into it."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return layout


def _read(handle: Any, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = handle.read(min(size, PIECE))
        if not piece:
            raise EOFError("the skeleton ends before its size")
        size -= len(piece)
        yield piece
