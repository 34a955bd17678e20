"""What a command finds around it: streams, terminal width and numbers of threads; settled before any library looks at them."""

import os
import re
import sys
from collections.abc import Mapping, MutableMapping

from steval.errors import ConfigError
from steval.machine import MAX_THREADS, THREAD_VARIABLES, thread_environment
from steval.wording import whole_number

NARROWEST, WIDEST = 40, 100_000
"""Columns of text at least and at most, whatever the environment says."""
_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def settle_streams() -> None:
    """Let a stream that is closed lead nowhere: else the next file opened gets its number, and what is printed goes into it."""
    for number, name, mode in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def settle_environment(environment: MutableMapping[str, str]) -> None:
    """Add what libraries are to find when they are loaded, and take away what some of them would stumble over."""
    environment.update(thread_environment(environment))
    environment["MPLBACKEND"] = "agg"  # no command shows a window; a notebook's choice, inherited, need not exist here
    for name, least in (("COLUMNS", NARROWEST), ("LINES", 1)):
        if name in environment:
            number = whole_number(environment.pop(name))
            if number:
                environment[name] = str(max(least, min(number, WIDEST)))


def require_environment(environment: Mapping[str, str]) -> None:
    """A `ConfigError` about variables that make libraries fail, or warn with a traceback, when they are loaded."""
    if sys.flags.optimize > 1:
        raise ConfigError("AnnData cannot be loaded without docstrings: leave out python -OO and PYTHONOPTIMIZE=2")
    problems = [
        f"{name}={environment[name]!r}: a whole number from 1 to {MAX_THREADS} is needed"
        for name in THREAD_VARIABLES
        if environment.get(name) and not _is_thread_number(name, environment[name])
    ]
    if problems:
        raise ConfigError("the environment's numbers of threads are not valid", problems)


def _is_thread_number(name: str, text: str) -> bool:
    """OpenMP's own variable may list a number for each level of nesting."""
    parts = text.split(",") if name == "OMP_NUM_THREADS" else [text]
    return all(re.fullmatch("[0-9]{1,9}", part.strip()) and 1 <= int(part) <= MAX_THREADS for part in parts)
