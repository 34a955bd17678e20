"""HDF5 files on a disk that may be full: one error, and the process lives on."""

from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py

PAGE = 1 << 12
LARGEST_STRUCTURE = 1 << 20
"""Bytes that HDF5 gathers of its own structures before it writes them; larger writes are cells, which it does not read back."""


@contextmanager
def new_hdf5(path: Path) -> Generator[h5py.File]:
    """A new HDF5 file at `path`, closed at the end; a disk that refuses a write is an `OSError` then, and nothing worse."""
    with DiskFile(path) as disk:
        try:
            with h5py.File(disk, "w") as handle:
                yield handle
        finally:
            disk.check()


class DiskFile(FileIO):
    """The file under an HDF5 file. A write that fails is kept for `check`, and HDF5 is told that all is well.

    HDF5 cannot close a file that it cannot write (a full disk): every object then fails with a traceback that nobody can
    catch, and the process crashes as it ends. It also reads its own structures back, and takes whatever lay in memory for
    them where a read brings less than asked: what the disk refused is therefore read from `_refused`, or as zeros.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self._error: OSError | None = None
        self._refused: dict[int, bytearray] = {}

    def check(self) -> None:
        """Raise what kept a write from the disk."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        start, size = self.tell(), len(left)
        try:
            while len(left) and self._error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self._error = error
        if self._error is not None and size <= LARGEST_STRUCTURE:
            self._remember(start, memoryview(data).cast("B"))
        return size

    def readinto(self, buffer: Any) -> int:
        start, into = self.tell(), memoryview(buffer).cast("B")
        size = super().readinto(into) or 0
        into[size:] = bytes(len(into) - size)
        for page, kept in self._refused.items():
            first, last = max(page * PAGE, start), min((page + 1) * PAGE, start + len(into))
            if first < last:
                into[first - start : last - start] = kept[first - page * PAGE : last - page * PAGE]
        return len(into)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = error
            return self.tell() if size is None else size

    def _remember(self, start: int, data: memoryview) -> None:
        """Keep a refused write, page by page; a page's first write takes over what the disk has of it."""
        for page in range(start // PAGE, (start + len(data) - 1) // PAGE + 1):
            if page not in self._refused:
                self.seek(page * PAGE)
                self._refused[page] = bytearray((super().read(PAGE) or b"").ljust(PAGE, b"\0"))
            first, last = max(page * PAGE, start), min((page + 1) * PAGE, start + len(data))
            self._refused[page][first - page * PAGE : last - page * PAGE] = data[first - start : last - start]
        self.seek(start + len(data))
