"""What the processes of all jobs share. Imported before a scoring job is confined: what starts a thread is not imported here."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from steval.errors import StevalError, UnknownPerturbationError
from steval.service.jobs.files import ERROR, INPUTS, REQUEST, TEMPORARY

NICENESS = 10
"""Requests that somebody waits for go first."""


def begin(directory: Path) -> dict[str, Any]:
    """The job's request; the process is polite from here on, and ends when its worker says so alone."""
    # whoever stops the service signals its children too; the worker ends this process, and puts the job back into the queue
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    return json.loads((directory / REQUEST).read_text(encoding="utf-8"))


def end_with_worker() -> None:
    """Start the thread that ends this process when its worker is gone, which holds the other end of standard input."""
    threading.Thread(target=_end_with_pipe, daemon=True).start()


def write_error(directory: Path, error: StevalError | MemoryError, request: dict[str, Any], what: str) -> None:
    """Leave word of why the job failed, without the server's own paths and the command line's options."""
    if isinstance(error, StevalError):
        places = [directory / INPUTS, directory]
        places += [Path(request["checkpoint"]).parent] if request["checkpoint"] else []
        details = _described(error, sorted(map(str, places), key=len, reverse=True))
    else:
        details = {"code": "too_large", "message": f"{what} needs more memory than this service gives a job"}
    (directory / TEMPORARY / ERROR).write_text(json.dumps(details), encoding="utf-8")


def _described(error: StevalError, places: list[str]) -> dict[str, Any]:
    from steval.service.http.answers import over_http

    def said(text: str) -> str:
        text = over_http(text)
        for place in places:
            text = text.replace(f"{place}{os.sep}", "").replace(place, "")
        return text

    lines = said(str(error)).split("\n")
    details: dict[str, Any] = {"code": error.code, "message": lines[0] if error.problems else "\n".join(lines)}
    if error.problems:
        details["problems"] = [said(problem) for problem in error.problems]
    if isinstance(error, UnknownPerturbationError):
        details["nearest"] = error.nearest
    return details


def _end_with_pipe() -> None:
    while os.read(0, 1):
        pass
    os._exit(3)
