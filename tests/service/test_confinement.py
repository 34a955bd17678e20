"""What the process of a scoring job may still do after `confine`: read what it was given and write into its own directory."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import steval
from steval.service.score.confinement import take_back

PACKAGE = Path(steval.__file__).parents[1]
PROBE = """
import json, os, resource, socket, sys
from pathlib import Path
from steval.service.score.confinement import Limits, confine

directory, inputs, given, secret, listener = sys.argv[1:]
limits = Limits(memory=2**33, seconds=100, file_bytes=2**20, open_files=64)
missing = confine(Path(directory), Path(inputs), [Path(given)], limits)


def outcome(function):
    try:
        function()
    except OSError as error:
        return type(error).__name__
    return "done"


def connect():
    socket.create_connection(("127.0.0.1", int(listener)), timeout=5)


def listen():
    socket.create_server(("127.0.0.1", 0))


def many():
    kept = [open("/dev/null") for _ in range(100)]


import ctypes
import statistics  # what lies beside Python can still be loaded

print(json.dumps({
    "missing": missing,
    "uid": os.getuid(),
    "read given": outcome(lambda: Path(given).read_bytes()),
    "read secret": outcome(lambda: Path(secret).read_bytes()),
    "read beside": outcome(lambda: Path(directory).with_name("beside").read_bytes()),
    "list root": outcome(lambda: os.listdir("/")),
    "write own": outcome(lambda: (Path(directory) / "result").write_text("x")),
    "read input": outcome(lambda: (Path(inputs) / "real.h5ad").read_bytes()),
    "write input": outcome(lambda: open(Path(inputs) / "real.h5ad", "ab")),
    "write beside input": outcome(lambda: (Path(inputs) / "new").write_text("x")),
    "write given": outcome(lambda: open(given, "ab")),
    "write secret": outcome(lambda: open(secret, "ab")),
    "remove secret": outcome(lambda: os.remove(secret)),
    "write shm": outcome(lambda: Path("/dev/shm/steval-probe").write_text("x")),
    "connect": outcome(connect),
    "listen": outcome(listen),
    "many files": outcome(many),
    "large file": outcome(lambda: (Path(directory) / "large").write_bytes(bytes(2**21))),
    "become root": outcome(lambda: os.setuid(0)) if os.getuid() else "was root",
    "signal parent": outcome(lambda: os.kill(os.getppid(), 0)),
    "new privileges": ctypes.CDLL(None).prctl(39, 0, 0, 0, 0),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
}))
"""


def probe(root: Path, user: int | None, python: str | None = None) -> dict:
    """What the probe found; as root where `user` is None, else as that user."""
    directory = root / "0123456789abcdef0123456789abcdef"
    given, secret = root / "given.h5ad", root / "secret.txt"
    inputs = root / "inputs"
    for folder in (directory, inputs):
        folder.mkdir(mode=0o700)
    (inputs / "real.h5ad").write_text("kept")
    for path in (given, secret, root / "beside"):
        path.write_text("kept")
        path.chmod(0o644)
    if user is not None and user != os.geteuid():
        for path in (directory, inputs, inputs / "real.h5ad"):
            os.chown(path, user, user)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [str(directory), str(inputs), str(given), str(secret), str(listener.getsockname()[1])]
        done = subprocess.run(
            [python or sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, timeout=60, check=False,
            cwd="/", env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            **({} if user is None or user == os.geteuid() else {"user": user, "group": user, "extra_groups": []}),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "kept"
    return json.loads(done.stdout)


@pytest.fixture
def open_place():
    """A directory that every user can pass through, as a service's own is for its jobs."""
    place = Path(tempfile.mkdtemp(prefix="steval-test-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def assert_confined(found: dict) -> None:
    expected = {
        "read given": "done",
        "read input": "done",
        "write own": "done",
        "many files": "OSError",
        "large file": "OSError",
        "core": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["new privileges"] == 1
    if any("Landlock" in sentence for sentence in found["missing"]):
        pytest.skip("this kernel has no Landlock")
    refused = (
        "read secret",
        "read beside",
        "list root",
        "write given",
        "write input",
        "write beside input",
        "write secret",
        "remove secret",
        "write shm",
        "become root",
    )
    assert {found[name] for name in refused} <= {"PermissionError", "OSError", "was root"}
    assert found["connect"] != "done"
    assert found["listen"] != "done"


def test_threads_are_refused_since_they_would_keep_their_rights(tmp_path):
    program = PROBE.replace(
        "directory, inputs",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\ndirectory, inputs",
        1,
    )
    arguments = [str(tmp_path), str(tmp_path), "given", "secret", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "2 threads at the time of confinement" in done.stderr


def test_what_a_job_imports_before_it_is_confined_starts_no_thread():
    program = (
        "import steval.service.score.job_process, sys; print({'numpy', 'h5py', 'numba', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_links_and_pipes_that_a_job_leaves_are_gone_before_anybody_follows_them(tmp_path):
    own, secret = tmp_path / "tmp", tmp_path / "secret"
    (own / "score").mkdir(parents=True)
    (secret / "deep").mkdir(parents=True)
    (secret / "file").write_text("kept")
    (own / "error.json").symlink_to(secret / "file")
    (own / "score" / "directory").symlink_to(secret)
    (own / "score" / "nowhere").symlink_to(tmp_path / "absent")
    os.mkfifo(own / "score" / "pipe")
    (own / "score" / "overall.csv").write_text("1")
    take_back(own)
    assert sorted(path.name for path in own.rglob("*")) == ["overall.csv", "score"]
    assert (secret / "file").read_text() == "kept"


def python_of_others() -> str:
    """A Python that another user can read, without packages: `confine` needs none. The test is skipped where there is none."""
    for path in (sys.executable, "/usr/bin/python3"):
        places = [place for one in (path, PACKAGE) for place in (Path(one).resolve(), *Path(one).resolve().parents)]
        if all(place.exists() and place.stat().st_mode & 0o001 for place in places):
            version = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(version, check=False).returncode == 0:
                return path
    pytest.skip("there is no Python that another user could read")


def test_a_user_is_confined(open_place):
    if os.geteuid() != 0:
        assert_confined(probe(open_place, os.geteuid()))
        return
    assert_confined(probe(open_place, 61_000, python_of_others()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_takes_a_user_id_of_its_own(open_place):
    found = probe(open_place, None, python_of_others())
    assert_confined(found)
    assert found["missing"] == []
    assert 61_184 <= found["uid"] < 65_280
    assert found["become root"] == "PermissionError"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_whose_files_nobody_else_can_read_is_confined_and_says_so(tmp_path):
    tmp_path.chmod(0o700)
    found = probe(tmp_path, None)
    assert found["uid"] == 0
    assert any("user id of root" in sentence for sentence in found["missing"])
    assert_confined(found)
