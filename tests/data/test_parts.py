"""Parts of files: what a writer leaves behind when it is stopped, and who may remove it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steval.data.files import atomic_path, partial_beside

WRITER = """
import sys, time
from pathlib import Path
from steval.data.files import atomic_path, atomic_tensors, partial_beside
from steval.signals import end_on_sigterm
end_on_sigterm()
path = Path(sys.argv[1])
if sys.argv[2] == "directory":
    partial_beside(path).mkdir()
with (atomic_tensors if sys.argv[2] == "tensors" else atomic_path)(path) as partial:
    written = partial.with_name(".tmpAbC123") if sys.argv[2] == "tensors" else partial
    written.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
"""safetensors' writer makes a file of such a name beside the one that it is given."""


def writer(path: Path, kind: str = "file") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_removes_what_was_being_written(tmp_path: Path):
    with writer(tmp_path / "p.h5ad") as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert "TerminatedError: terminated; nothing half-written was left" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "directory", "tensors"])
def test_what_a_killed_writer_left_is_removed_by_the_next_of_its_name(tmp_path: Path, kind):
    path = tmp_path / "p[1].h5ad"
    other = tmp_path / "p.h5ad"
    with writer(path, kind) as killed, writer(other) as alive:
        killed.kill()
        killed.communicate()
        left = [one for one in tmp_path.iterdir() if one.name.startswith(".p[1]")]
        assert len(left) == (1 if kind == "file" else 2)
        with atomic_path(other) as partial:
            partial.write_text("whole")
        assert all(one.exists() for one in left), "another name's are not touched"
        with atomic_path(path) as partial:
            partial.write_text("whole")
        assert not any(one.exists() for one in left)
        with atomic_path(other) as partial:
            partial.write_text("whole")
        assert len(list(tmp_path.glob(".p.h5ad.*.part"))) == 1, "its writer is alive"
        alive.terminate()
        alive.communicate()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["p.h5ad", "p[1].h5ad"]


def test_parts_of_another_machine_or_of_nobody_known_stay(tmp_path: Path):
    own = partial_beside(tmp_path / "a").name
    pid, birth, machine, rest = own.removeprefix(".a.").split("-")
    (tmp_path / f".a.{2**22 + 1}-1-{machine}-{rest}").touch()
    kept = [f".a.{2**22 + 1}-1-{'0' * 8}-{rest}", ".a.backup", ".a.12-abcd.part", f".a.{pid}-{birth}-{machine}-{rest}"]
    for name in kept:
        (tmp_path / name).touch()
    partial_beside(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_forked_child_ends_without_touching_its_parents_files(tmp_path: Path):
    script = """
import os, signal, sys, time
from pathlib import Path
from steval.data.files import atomic_path
from steval.signals import end_on_sigterm
end_on_sigterm()
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_text("whole")
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), partial.exists())
"""
    command = [sys.executable, "-c", script, str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{int(signal.SIGTERM)} True\n"
    assert (tmp_path / "p").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
