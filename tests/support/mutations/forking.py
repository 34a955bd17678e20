"""`steval` as a process of its own, forked from one that has imported everything: a command costs its work, not its imports.

Run as a program this is the process that forks; it reads a request a line and answers with the exit code, as a shell tells it.
What a command must find at its start, before libraries are imported (a matplotlib backend, encodings), needs a fresh process.
"""

import atexit
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

IMPORTS = (
    "steval.workflows.score", "steval.predictor.job", "steval.workflows.finetune", "steval.workflows.checkpoints.calibrate",
    "steval.workflows.pack", "steval.workflows.checkpoints.convert", "steval.workflows.compare", "steval.workflows.doctor",
    "steval.workflows.init", "steval.workflows.demo", "steval.batch.run", "steval.data.cells.prepare", "steval.service.client",
    "steval.service.settings", "steval.checkpoints.inspection", "sqlite3",
)  # fmt: skip
SECONDS = 60
"""After which a command counts as hanging; the slowest takes four on a quiet machine."""
ADDRESSES = 16 * 2**30
"""Bytes of addresses for a command, so that one which grows without end takes itself away and not the machine."""
SIGNAL_AT_TIMEOUT = signal.SIGKILL


@dataclass(frozen=True)
class Started:
    """How a command begins."""

    arguments: tuple[str, ...]
    """After `steval`; bytes outside UTF-8 as surrogates."""
    directory: str
    environment: dict[str, str]
    closed: tuple[int, ...] = ()
    """Streams of these numbers are not there."""
    stdout: str = ""
    """A file in place of the directory's `stdout`."""
    largest_file: int = 0
    """Bytes a file may have, as on a disk that becomes full; 0: no limit."""
    fresh: bool = False
    """In a process that imports everything itself."""


@dataclass(frozen=True)
class Ended:
    """How it ended."""

    code: int
    """As `subprocess` tells it: negative for a signal."""
    stdout: str
    stderr: str
    hung: bool = False
    memory: int = 0
    """Bytes that it held at its peak."""


@dataclass
class CommandServer:
    """The process that forks, from `with` to its end; `scratch` takes what commands print."""

    scratch: Path
    _process: subprocess.Popen = field(init=False)

    def __enter__(self) -> Self:
        environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MPLBACKEND="agg")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, started: Started) -> Ended:
        """Run one command to its end."""
        streams = [self.scratch / name for name in ("stdout", "stderr")]
        places = [started.stdout or str(streams[0]), str(streams[1])]
        for path in streams:
            path.write_bytes(b"")
        self._process.stdin.write(json.dumps({**asdict(started), "streams": places}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        said = [path.read_text("utf-8", "surrogateescape") for path in streams]
        return Ended(answer["code"], *said, hung=answer["hung"], memory=answer["memory"])


def serve() -> None:
    """Fork a child for each request until the requests end."""
    for name in IMPORTS:
        __import__(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become_command(request)
            return
        answers.write(json.dumps(_wait(child)) + "\n")
        answers.flush()


def _wait(child: int) -> dict[str, object]:
    """Its exit code; after `SECONDS` it and what it started are killed."""
    handle = os.pidfd_open(child)
    import select

    hung = not select.select([handle], [], [], SECONDS)[0]
    os.close(handle)
    if hung:
        os.killpg(child, SIGNAL_AT_TIMEOUT)
    _, status, used = os.wait4(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "hung": hung, "memory": used.ru_maxrss * 1024}


def _become_command(request: dict) -> None:
    os.setsid()
    os.chdir(request["directory"])
    for number, path in zip((0, 1, 2), (os.devnull, *request["streams"]), strict=True):
        handle = os.open(path, os.O_RDWR if number else os.O_RDONLY)
        os.dup2(handle, number)
        os.close(handle)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    for number in request["closed"]:
        os.close(number)
    if request["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], request["largest_file"]))
    arguments = ["steval", *request["arguments"]]
    if request["fresh"]:
        os.execve(sys.executable, [sys.executable, "-m", *arguments], request["environment"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = arguments
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = None if number in request["closed"] else os.fdopen(number, "w" if number else "r", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os._exit(_ended())


def _ended() -> int:
    """What the interpreter does at a program's end, but for taking its hundred thousand objects apart one by one."""
    from steval.cli import main

    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  as the interpreter
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve()
