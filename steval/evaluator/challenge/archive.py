"""The archive of a submission: a plain tar whose member `pred.h5ad.zst` is compressed as the cells are made.

No member passes through a file of its own: the length of the compressed cells goes into their header when it is known.
"""

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import zstandard

from steval.data.cells.stream import H5adStream, StreamedCells
from steval.data.files import atomic_path
from steval.machine import num_cores

MEMBER = "pred.h5ad.zst"
LEVEL = 3


def write_archive(
    out: Path,
    cells: StreamedCells,
    *,
    before: Mapping[str, bytes] | None = None,
    after: Mapping[str, bytes] | None = None,
) -> int:
    """Write `cells` to the archive `out`, atomically, with small members `before` and `after` them; its size in bytes."""
    with atomic_path(out) as archive:
        skeleton = archive.with_suffix(".h5ad")
        try:
            with archive.open("wb") as target:
                for name, content in (before or {}).items():
                    _add(target, name, content)
                _add_compressed(target, H5adStream(cells, skeleton))
                for name, content in (after or {}).items():
                    _add(target, name, content)
                target.write(bytes(2 * tarfile.BLOCKSIZE))
                _fill(target, tarfile.RECORDSIZE)
        finally:
            skeleton.unlink(missing_ok=True)
    return Path(out).stat().st_size


def _add(target: BinaryIO, name: str, content: bytes) -> None:
    target.write(_header(name, len(content)))
    target.write(content)
    _fill(target, tarfile.BLOCKSIZE)


def _add_compressed(target: BinaryIO, stream: H5adStream) -> None:
    place = target.tell()
    target.write(bytes(tarfile.BLOCKSIZE))
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=num_cores())
    with compressor.stream_writer(target, size=stream.size, closefd=False) as packed:
        for piece in stream.pieces():
            packed.write(piece)
    size = target.tell() - place - tarfile.BLOCKSIZE
    _fill(target, tarfile.BLOCKSIZE)
    end = target.tell()
    target.seek(place)
    target.write(_header(MEMBER, size))
    target.seek(end)


def _header(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    member.mode = 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _fill(target: BinaryIO, unit: int) -> None:
    target.write(bytes(-target.tell() % unit))
