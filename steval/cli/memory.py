"""How a process that computes for minutes has its memory managed: a matter of the whole process, so decided at its edge."""

import ctypes
import gc
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's numbers of `mallopt` options (malloc.h)."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let malloc use arrays that were freed again instead of mapping each anew, which costs a page fault for every 4 kB.

    A step of training or a batch of predictions frees and asks for the same large arrays every time: glibc gives those above
    32 MB back at once. Returns whether it was done: not without glibc, nor where the caller's environment sets malloc's
    options (`MALLOC_...`).
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


@contextmanager
def importing() -> Generator[None]:
    """Around the import of a heavy room: nothing of it is garbage, and looking for some takes a fifth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
