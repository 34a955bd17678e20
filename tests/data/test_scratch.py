"""Temporary directories: gone at the end, however that comes, without a race between users or processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steval.data.files import ScratchDirectory

HOLDER = """
import sys, time
from steval.data.files import ScratchDirectory
scratch = ScratchDirectory("steval-rows")
(scratch.path / "deep").mkdir()
(scratch.path / "deep" / "file").write_text("x")
print(scratch.path, flush=True)
time.sleep(60 if sys.argv[1] == "stay" else 0)
"""


def holder(place: Path, how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, how], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    process.place = Path(process.stdout.readline().strip())
    return process


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_goes_with_its_process_and_what_a_killed_one_left_with_the_next(place: Path) -> None:
    with holder(place, "end") as ended:
        ended.communicate(timeout=60)
    assert list(place.iterdir()) == []
    with holder(place, "stay") as killed, holder(place, "stay") as alive:
        killed.kill()
        killed.communicate()
        assert killed.place.is_dir()
        with ScratchDirectory("steval-rows") as scratch:
            assert sorted(place.iterdir()) == sorted([alive.place, scratch])
            assert scratch.stat().st_mode & 0o777 == 0o700
        assert list(place.iterdir()) == [alive.place]
        alive.send_signal(signal.SIGKILL)
        alive.communicate()


def test_links_that_look_like_what_was_left_are_not_followed(place: Path) -> None:
    with holder(place, "stay") as killed:
        killed.kill()
        killed.communicate()
    kept = place / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    link = killed.place.with_name(killed.place.name[: -len("00000000.part")] + "00000000.part")
    link.symlink_to(kept)
    with ScratchDirectory("steval-rows"):
        pass
    assert (kept / "file").read_text() == "mine"
    assert [path.name for path in place.iterdir()] == ["kept"]


def test_a_process_that_was_forked_from_its_owner_leaves_it(place: Path) -> None:
    code = """
import os, sys
from steval.data.files import ScratchDirectory
scratch = ScratchDirectory("steval-rows")
if not os.fork():
    sys.exit()
os.wait()
print(scratch.path.is_dir())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
