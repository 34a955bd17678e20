"""Ctrl-C and SIGTERM: between steps they ask a run to stop after the step it is in; elsewhere, and a second Ctrl-C, at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

AGREE_EVERY = 10
"""Steps between two exchanges of several processes about stopping."""


class StoppedAtOnceError(BaseException):
    """Raised wherever a signal found the run; no `Exception`, and no `KeyboardInterrupt`, which Lightning answers with exit 1."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped at once; the message says what is there to go on from, `exit_code` is the shell's for the signal."""

    def __init__(self, message: str, number: int):
        self.exit_code = 128 + number
        super().__init__(message)


class StopSignal:
    """Listens to SIGINT and SIGTERM within `with`."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked to stop."""
        self.waits = False
        """Whether there is a loop that asks `requested` after each step, so that a first signal need not break it off."""
        self._closing = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals, again after Lightning has; without effect outside the main thread, where none arrive."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def close(self) -> None:
        """From here on what is left is written to its end, whatever comes."""
        self._closing = True

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers found first."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; several processes agree on one step."""
        return (_is_alone() or step % AGREE_EVERY == 0) and self.agreed()

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every one of them has to ask."""
        if _is_alone():
            return self.number is not None
        device = (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )
        flag = torch.tensor([float(self.number is not None)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None and number == signal.SIGINT
        self.number = number
        if not self._closing and (again or not self.waits):
            raise StoppedAtOnceError(number)


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
