"""Files written beside training, by a thread that takes one after another: what a killed run leaves is what it would have left
had it written each before the next step, up to some moment."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

PENDING = 1
"""Writes that may be waited for when the next snapshot is taken: so many copies of weights are in memory, and one more."""


class WritingThread:
    """Does what it is told in order. After an error it does nothing more, and the error is raised at the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._pending: deque[Future[None]] = deque()
        self._error: BaseException | None = None
        self._is_raised = False

    def submit(self, write: Callable[[], object]) -> None:
        """Let `write` follow what was submitted before; it works on copies (`copied`)."""
        self._pending.append(self._pool.submit(self._run, write))

    def make_room(self) -> None:
        """Wait until a snapshot more may be held."""
        self._wait(PENDING)

    def flush(self) -> None:
        """Wait until everything is written."""
        self._wait(0)

    def check(self) -> None:
        """Raise the error of a write that has failed; waits for nothing."""
        if self._error is not None:
            self._is_raised = True
            raise self._error

    def close(self) -> BaseException | None:
        """Wait until everything is written, and end; an error that was never raised is returned."""
        self._pool.shutdown()
        return None if self._is_raised else self._error

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()
        self.check()

    def _run(self, write: Callable[[], object]) -> None:
        if self._error is not None:
            return
        try:
            write()
        except BaseException as error:  # noqa: BLE001 - of whatever kind it is, it ends the run in the thread that trains
            self._error = error


def copied(value: Any) -> Any:
    """A copy that shares nothing with `value`: tensors on the CPU, in mappings, lists and tuples at any depth."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value
