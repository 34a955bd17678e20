"""A directory belongs to one command at a time, and a crash gives it back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steval.data.locks import LOCK_NAME, DirectoryLock
from steval.errors import ConfigError

HOLD = "import sys, time; from pathlib import Path; from steval.data.locks import DirectoryLock\n" + (
    "with DirectoryLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
)
TAKE_TURNS = """
import os, sys, time
from pathlib import Path
from steval.data.locks import DirectoryLock
from steval.errors import ConfigError
place, children = Path(sys.argv[1]), []
for _ in range(8):
    child = os.fork()
    if not child:
        for _ in range(40):
            while True:
                try:
                    lock = DirectoryLock(place).acquire()
                    break
                except ConfigError:
                    time.sleep(0.0005)
            try:
                os.close(os.open(place / "inside", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                os._exit(1)
            (place / "inside").unlink()
            lock.release()
        os._exit(0)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
"""Eight processes, forked by one that has no threads, want one lock forty times each."""


def test_the_second_is_refused_with_who_has_it_and_nothing_is_left(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "run"):
        with pytest.raises(ConfigError, match=rf"in use by another steval command \(process {os.getpid()} on "):
            DirectoryLock(tmp_path / "run").acquire()
        with DirectoryLock(tmp_path / "other"):
            pass
    assert list((tmp_path / "run").iterdir()) == []
    with DirectoryLock(tmp_path / "run"):
        pass


def test_a_killed_holder_leaves_nothing_that_locks(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} "):
        DirectoryLock(tmp_path).acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / LOCK_NAME).exists()
    with DirectoryLock(tmp_path):
        pass


def test_many_take_turns_and_never_two_at_once(tmp_path: Path) -> None:
    """The file is removed at each release; whoever had opened the removed one must not believe that it holds the lock."""
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{[0] * 8}\n", done.stderr


def test_a_lock_that_is_a_link_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot lock"):
        DirectoryLock(tmp_path).acquire()
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot create the directory"):
        DirectoryLock(tmp_path / "file").acquire()
