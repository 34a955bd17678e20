"""What a run tells its user: tables before and between phases (plain values, printed by whoever called), a bar within them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steval.logs import progress_bar
from steval.trainer.progress.state import Progress


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


Tell = Callable[[Notice], None]
"""Takes a notice; the command line prints it."""

OnStep = Callable[[Progress], None]
"""Told after each optimiser step."""


class PhaseBar:
    """One bar of `steps` steps; passes each step on to `on_step`."""

    def __init__(self, name: str, steps: int, done: int, on_step: OnStep | None):
        self._bar = progress_bar(steps, name, "step")
        self._bar.update(done)
        self._on_step = on_step

    def step(self, progress: Progress) -> None:
        """After each optimiser step."""
        self._bar.update(1)
        if self._on_step is not None:
            self._on_step(progress)

    def row(self, progress: Progress, values: Mapping[str, float]) -> None:
        """After each row of metrics."""
        shown = {name: values[name] for name in ("train/total", "val/gene", "val/embedding") if name in values}
        best = {"best": progress.best["value"]} if progress.best else {}
        self._bar.set_postfix({**shown, **best}, refresh=False)

    def close(self) -> None:
        """Leave the bar where it is."""
        self._bar.close()
