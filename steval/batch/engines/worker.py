"""A worker process of the local engine: takes tasks from a pipe one after another, ends with its parent.

`kill -USR1 PID` makes it write to stderr what each of its threads is at.
"""

import faulthandler
import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from steval.machine import THREAD_VARIABLES


def work(pipe: Connection, threads: int) -> None:
    """Do `(task, device)` after `(task, device)` from `pipe` and send each outcome back, until the pipe closes."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from tqdm import tqdm

    from steval.batch.work.tasks import perform

    tqdm.set_lock(threading.RLock())  # its default is a semaphore of the system, which a killed worker leaves behind
    while True:
        try:
            task, device = pipe.recv()
        except (EOFError, OSError):
            return
        outcome = perform(task, device)
        try:
            pipe.send(outcome)
        except OSError:
            return


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
