"""Waiting for what must come about, however slow the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 120.0) -> T:
    """What `condition` says once that is true; fails where it never is. The time is a limit for what hangs, not a measure."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds:g} s"
        time.sleep(0.02)
    return found
