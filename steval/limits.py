"""How large a number in settings may be, and whether what numbers ask for fits this machine.

A number that sizes an array, a list or a set of processes has an end: without one a slip of the keyboard takes the machine's
memory before anybody can say so. Sides of arrays that are fine one by one are checked together, by `require_memory`, before
anything is made.
"""

from typing import Annotated

from pydantic import Field

from steval.errors import ConfigError
from steval.machine import MAX_THREADS, num_cores, total_memory
from steval.wording import counted, memory_size

Width = Annotated[int, Field(ge=1, le=2**24)]
"""A side of an array: columns, hidden sizes, sets of a batch."""
Depth = Annotated[int, Field(ge=1, le=1024)]
"""Layers, heads: modules that are made one by one."""
MOST_SET_CELLS = 2**16
SetSize = Annotated[int, Field(ge=1, le=MOST_SET_CELLS)]
"""Cells of a set: each looks at every other."""
Count = Annotated[int, Field(ge=1, le=10**12)]
"""Of what happens one after the other, or a limit: nothing is made for it."""
Tally = Annotated[int, Field(ge=0, le=10**12)]
"""A count that may be none."""
NumBytes = Annotated[int, Field(ge=0, le=2**60)]
"""A limit on memory or disk."""
Processes = Annotated[int, Field(ge=1, le=MAX_THREADS)]
"""Processes, threads or devices; `require_processes` knows the machine."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What every generator takes."""

Seconds = Annotated[float, Field(gt=0, le=10**9)]
"""A time to wait: 30 years, and no more than clocks and limits of processes can count."""
Gibibytes = Annotated[float, Field(ge=0, le=2**30)]
"""A budget of memory."""

BUSY = 16
"""Processes for each processor: more only take memory and each other's time."""
FEW_PROCESSES = 64
"""Whatever the machine has, so many are taken for wanted."""


def require_memory(num_bytes: float, what: str, remedy: str) -> None:
    """A `ConfigError` where `what` takes more than all the memory that this process may ever have; `remedy` says what to lower."""
    most = total_memory()
    if num_bytes > most:
        raise ConfigError(
            f"{what} would take {memory_size(num_bytes)} of memory at least, and this process may have {memory_size(most)}: "
            f"{remedy}"
        )


def require_processes(number: int, name: str) -> None:
    """A `ConfigError` where the setting `name` asks for more processes or threads than the machine can keep busy."""
    most = max(FEW_PROCESSES, BUSY * num_cores())
    if number > most:
        raise ConfigError(
            f"{name} {number:,}: this machine has {counted(num_cores(), 'processor')} for this process; at most "
            f"{counted(most, 'process or thread', 'processes or threads')} may be started"
        )
