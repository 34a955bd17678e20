"""SIGTERM as an error that unwinds: what was being written is removed on the way out.

A module of its own, that imports nothing: the command line asks for it before it knows the command, and help is to be quick.
"""

import os
import signal
import threading
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: what was being written is removed on the way out."""

    exit_code = 128 + signal.SIGTERM


def end_on_sigterm() -> None:
    """From here on SIGTERM raises `TerminatedError` in this process's main thread; a second one ends it at once.

    Without effect where somebody else handles the signal, and in processes that are forked from this one.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    pid = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != pid:
            os.kill(os.getpid(), number)
            return
        raise TerminatedError("terminated; nothing half-written was left")

    signal.signal(signal.SIGTERM, end)
