"""Ranges of a stored HDF5 array, read past the HDF5 library where its bytes lie plain in the file.

Reading thousands of scattered rows through h5py costs more in calls than in bytes. An unfiltered dataset (contiguous, or in
chunks that span its rows) is read by `pread` at known offsets: no lock, no cache to fill, safe for several threads at
once. A compressed one goes through h5py, under a lock, ranges that lie close together in one piece.
"""

import os
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from steval.data.rows.unreadable import reading
from steval.errors import DataError

GAP_BYTES = 256 * 2**10
"""Ranges this close are read in one piece: a few unused values cost less than another call."""
MERGE_BYTES = 32 * 2**20
"""Largest such piece (a longer single range excepted): evenly spaced rows do not pull in the whole file at once."""


class FlatArray:
    """Row ranges of one dataset `[n]` or `[n, D]`."""

    def __init__(self, dataset: h5py.Dataset, descriptor: int, lock: AbstractContextManager[Any], path: Path):
        self._dataset = dataset
        self._descriptor = descriptor
        self._lock = lock
        self._path = path
        self.dtype = dataset.dtype
        self.shape = dataset.shape
        self._row_bytes = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
        self._chunk_rows, self._offsets = _plain_offsets(dataset)

    @property
    def is_plain(self) -> bool:
        """Whether the bytes lie uncompressed in the file."""
        return self._offsets is not None

    def read(self, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Fill `out [sum(stops - starts), ...]` (C-contiguous, the stored dtype) with the ranges, one after the other."""
        starts, stops = _joined(starts, stops)
        if self._offsets is not None:
            self._read_plain(starts, stops, memoryview(out.reshape(-1).view(np.uint8).data))
            return
        with reading(f"{self._path} is damaged: {self._dataset.name} cannot be read"), self._lock:
            self._read_library(starts, stops, out)

    def _read_library(self, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        position = 0
        for first, last in self._pieces(starts, stops):
            low, high = int(starts[first]), int(stops[last - 1])
            num_wanted = int((stops[first:last] - starts[first:last]).sum())
            target = out[position : position + num_wanted]
            position += num_wanted
            if num_wanted == high - low:
                self._dataset.read_direct(target, np.s_[low:high])
                continue
            piece = self._dataset[low:high]
            filled = 0
            for start, stop in zip(
                (starts[first:last] - low).tolist(), (stops[first:last] - low).tolist(), strict=True
            ):
                target[filled : filled + stop - start] = piece[start:stop]
                filled += stop - start

    def _pieces(self, starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int]]:
        """Numbers `[first, last)` of ranges that are read together: ascending, close to each other, not too much at once."""
        if not len(starts):
            return []
        gap = starts[1:] - stops[:-1]
        breaks = np.flatnonzero((gap < 0) | (gap * self._row_bytes > GAP_BYTES)) + 1
        most = max(MERGE_BYTES // max(self._row_bytes, 1), 1)
        pieces = []
        for begin, end in pairwise([0, *breaks.tolist(), len(starts)]):
            first = begin
            while first < end:
                fitting = int(np.searchsorted(stops[first:end], starts[first] + most, side="right"))
                pieces.append((first, first + max(fitting, 1)))
                first = pieces[-1][1]
        return pieces

    def _read_plain(self, starts: np.ndarray, stops: np.ndarray, buffer: memoryview) -> None:
        assert self._offsets is not None
        chunk = self._chunk_rows
        first, last = starts // chunk, (stops - 1) // chunk
        pieces = last - first + 1
        number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        chunks = np.repeat(first, pieces) + number
        low = np.maximum(np.repeat(starts, pieces), chunks * chunk)
        high = np.minimum(np.repeat(stops, pieces), (chunks + 1) * chunk)
        offsets = self._offsets[chunks] + (low - chunks * chunk) * self._row_bytes
        sizes = (high - low) * self._row_bytes
        position = 0
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            self._fill(buffer[position : position + size], offset)
            position += size

    def _fill(self, piece: memoryview, offset: int) -> None:
        done = os.preadv(self._descriptor, [piece], offset)
        while done < len(piece):
            more = os.preadv(self._descriptor, [piece[done:]], offset + done)
            if not more:
                raise DataError(
                    f"{self._path} is damaged or was cut while it was open: {self._dataset.name} ends early"
                )
            done += more


def _joined(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges without the empty ones, neighbours that touch made one."""
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not len(starts):
        return starts, stops
    breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
    return starts[np.concatenate([[0], breaks])], stops[np.concatenate([breaks - 1, [len(stops) - 1]])]


def _plain_offsets(dataset: h5py.Dataset) -> tuple[int, np.ndarray | None]:
    """Rows per chunk and the byte offset of each; no offsets where the bytes are filtered, foreign, spread or absent."""
    plist = dataset.id.get_create_plist()
    if plist.get_nfilters() or plist.get_external_count() or dataset.file.userblock_size or not dataset.dtype.isnative:
        return 1, None
    if not dataset.shape or not dataset.shape[0]:
        return 1, None
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        return (dataset.shape[0], np.array([offset])) if offset is not None else (1, None)
    if dataset.chunks[1:] != dataset.shape[1:]:
        return 1, None
    rows = dataset.chunks[0]
    offsets = np.full(-(-dataset.shape[0] // rows), -1, dtype=np.int64)

    def note(info: h5py.h5d.StoreInfo) -> None:
        offsets[info.chunk_offset[0] // rows] = info.byte_offset

    dataset.id.chunk_iter(note)
    return (rows, offsets) if (offsets >= 0).all() else (1, None)
