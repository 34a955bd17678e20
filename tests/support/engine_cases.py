"""The engines to try a batch on, their processes, and ways in which a data file breaks."""

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest

from steval.batch.engines.base import Engine
from steval.batch.run import make_engine
from steval.batch.settings import Running
from support.in_process import InProcessEngine

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (steval[ray])")
RAY = pytest.param("ray", marks=[needs_ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")], id="ray")
"""Ray is slow to start, and its own warnings are not ours."""


@contextmanager
def engine_of(name: str, workers: int = 2) -> Iterator[Engine]:
    """`in-process`, or one of the engines that a manifest may name."""
    engine = InProcessEngine() if name == "in-process" else make_engine(Running(engine=name, workers=workers))
    try:
        yield engine
    except BaseException:  # a test out of time raises none of Exception; passed on
        if engine.name == "local":
            show_workers()
        raise
    finally:
        engine.close()


def show_workers() -> None:
    """Let the local engine's workers write to stderr where they are: what to read when a test ran out of time."""
    for worker, command in descendants(os.getpid()):
        if b"spawn_main" in command:
            os.kill(worker, signal.SIGUSR1)
    time.sleep(1.0)


def write_compressed(cells: ad.AnnData, path: Path) -> None:
    """An h5ad whose values are stored in many small compressed pieces."""
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        values = handle["X/data"][:]
        del handle["X/data"]
        handle["X"].create_dataset("data", data=values, chunks=(64,), compression="gzip")


def tear(path: Path, row: int) -> None:
    """Spoil the stored values of a cell of a compressed file, size and times as before: what a failing disk does."""
    status = path.stat()
    with h5py.File(path, "r") as handle:
        values = handle["X/data"]
        start = int(handle["X/indptr"][row]) // values.chunks[0] * values.chunks[0]
        piece = values.id.get_chunk_info_by_coord((start,))
    with path.open("r+b") as file:
        file.seek(piece.byte_offset)
        file.write(b"\xff" * piece.size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rows_of(cells: ad.AnnData, label: str) -> np.ndarray:
    """Row numbers of the cells of a perturbation."""
    return np.flatnonzero((cells.obs["target_gene"] == label).to_numpy())


def wait_for_children(pid: int, seconds: float = 60.0) -> list[int]:
    """Worker processes of a runner: its children that `spawn` started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [child for child, command in descendants(pid) if b"spawn_main" in command]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("no worker was started")


def descendants(pid: int) -> Iterator[tuple[int, bytes]]:
    """Process number and command line of every process below `pid`."""
    parents: dict[int, tuple[int, bytes]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents[int(entry.name)] = (parent, (entry / "cmdline").read_bytes())
            except (OSError, ValueError):
                continue
    for child, (_, command) in parents.items():
        above = child
        while above in parents and above != pid:
            above = parents[above][0]
        if above == pid and child != pid:
            yield child, command
