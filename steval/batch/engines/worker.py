"""A worker process of the local engine: takes tasks from a pipe one after another, ends with its parent.

`kill -USR1 PID` makes it write to stderr what each of its threads is at.
"""

import faulthandler
import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steval.batch.jobs import Outcome

from steval.machine import THREAD_VARIABLES

READY = "ready"
MOST_CHARACTERS = 2000
"""Of each text in a result: up to 16 KB are written in one piece."""


def work(pipe: Connection, threads: int) -> None:
    """Say `READY`, then do `(task, device)` after `(task, device)` from `pipe` and send each result back, until the pipe closes.

    A result is an outcome without its task, which the engine knows: small enough to pass whole or not at all, so that a
    worker that is stopped or killed at any moment never leaves the engine waiting for the rest of a message.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what it was writing is removed
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from tqdm import tqdm

    from steval.batch.work.tasks import perform

    tqdm.set_lock(threading.RLock())  # its default is a semaphore of the system, which a killed worker leaves behind
    try:
        pipe.send(READY)
        while True:
            task, device = pipe.recv()
            outcome = perform(task, device)
            pipe.send(_result(outcome))
    except (EOFError, OSError):
        return


def _result(outcome: "Outcome") -> dict[str, Any]:
    return {
        "seconds": outcome.seconds,
        "error": outcome.error and outcome.error[:MOST_CHARACTERS],
        "error_kind": outcome.error_kind,
        "retriable": outcome.retriable,
        "details": outcome.details[-MOST_CHARACTERS:],
    }


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
