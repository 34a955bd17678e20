"""What a run tells its user before and between phases: tables as plain values, printed by whoever called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Notice:
    """A titled table; `warnings` are shown after it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same as text."""
        rows = ["  " + "  ".join(str(value) for value in row) for row in self.rows]
        return [self.title, *rows, *(f"warning: {text}" for text in self.warnings)]


Report = Callable[[Notice], None]
"""Takes a notice; the command line prints it."""
