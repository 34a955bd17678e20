"""A phase's progress on stderr, with the latest losses."""

from collections.abc import Callable, Mapping

from steval.logs import progress_bar
from steval.trainer.progress.progress import Progress

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
