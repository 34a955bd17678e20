import resource
from pathlib import Path

import numpy as np
import pytest

from steval.data.disk_files import DiskFile


@pytest.mark.parametrize("limit", [100, 5_000, 20_000, 60_000])
def test_what_a_full_disk_refused_is_read_back_as_it_was_written(tmp_path: Path, limit: int):
    """HDF5 reads its own structures back; a short read would leave whatever lay in memory, and crash the process."""
    rng, held = np.random.default_rng(limit), bytearray(100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with DiskFile(tmp_path / "file") as disk:
            for _ in range(300):
                start, size = int(rng.integers(90_000)), int(rng.integers(1, 9_000))
                data = rng.bytes(size)
                disk.seek(start)
                assert disk.write(data) == size
                held[start : start + size] = data
                start, size = int(rng.integers(90_000)), int(rng.integers(1, 9_000))
                disk.seek(start)
                assert disk.readinto(read := bytearray(b"x" * size)) == size
                assert read == held[start : start + size]
            with pytest.raises(OSError, match="File too large"):
                disk.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
