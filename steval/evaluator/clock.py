"""Wall time of the stages of a run."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by stage; stages of the same name add."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time the block under `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def table(self) -> dict[str, float]:
        """Seconds by stage to the millisecond, and `total` since the clock was made."""
        return {
            **{name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "total": round(time.perf_counter() - self._started, 3),
        }
