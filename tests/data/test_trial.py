"""What HDF5 does not come back from, or crashes on, is a sentence: the structure of a file is read on trial first."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from steval.data.cells.cellfile import CellFile, read_anndata
from steval.data.rows import trial
from steval.errors import DataError
from tests.support.predictor_models import lognorm_cells

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="files are tried on Linux alone")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lognorm_cells()[::30].copy().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def without_end(path: Path, whole: bool) -> None:
    while True:
        pass


def crash(path: Path, whole: bool) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def too_large(path: Path, whole: bool) -> None:
    held = [bytes(2**28) for _ in range(64)]
    raise AssertionError(len(held))


def error(path: Path, whole: bool) -> None:
    raise KeyError(path)


@pytest.mark.parametrize(
    ("visit", "seconds", "says"),
    [
        (without_end, 1, "reading its structure does not end within 1 seconds"),
        (crash, trial.SECONDS, "the HDF5 library crashes on it .signal 11."),
        (too_large, trial.SECONDS, "its structure claims more than 1 GB"),
    ],
)
def test_what_the_library_does_not_come_back_from_is_refused(
    path: Path, visit: Callable[[Path, bool], None], seconds: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_visit", visit)
    monkeypatch.setattr(trial, "SECONDS", seconds)
    monkeypatch.setattr(trial, "MEMORY", 2**30)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"cells\.h5ad is damaged: {says}"):
            CellFile.open(path)


def test_what_fails_with_an_error_is_left_to_the_reader(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_visit", error)
    CellFile.open(path).close()


def test_a_file_is_tried_again_once_it_has_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CellFile.open(path).close()
    monkeypatch.setattr(trial, "_visit", crash)
    CellFile.open(path).close()
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match="crashes"):
        CellFile.open(path)


def test_damage_in_what_is_not_read_does_not_matter_until_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash_on_the_whole(path: Path, whole: bool) -> None:
        if whole:
            crash(path, whole)

    monkeypatch.setattr(trial, "_visit", crash_on_the_whole)
    CellFile.open(path).close()
    with pytest.raises(DataError, match="crashes"):
        read_anndata(path)


def test_without_room_for_another_process_the_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", no_room)
    CellFile.open(path).close()


def test_without_a_verdict_the_file_is_read_and_tried_again_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    def refused(child: int) -> int:
        children.append(child)
        raise PermissionError

    monkeypatch.setattr(trial, "_visit", crash)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", refused)
        CellFile.open(path).close()
    assert len(children) == 1
    with pytest.raises(ChildProcessError):  # it was waited for
        os.waitpid(children[0], 0)
    with pytest.raises(DataError, match="crashes"):
        CellFile.open(path)


def test_a_process_with_a_thousand_open_files_tries_too(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2000:
        pytest.skip("no 2,000 descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, limits[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        CellFile.open(path).close()
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
