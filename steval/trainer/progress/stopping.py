"""Ctrl-C and SIGTERM ask a run to stop after the step it is in; a second Ctrl-C stops at once."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

AGREE_EVERY = 10
"""Steps between two exchanges of several processes about stopping."""


class StopSignal:
    """Set by a signal while listening; `close` gives the signals back."""

    def __init__(self) -> None:
        self._set = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM; without effect outside the main thread, where signals do not arrive."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def close(self) -> None:
        """Restore the handlers found first."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def ask(self) -> None:
        """As the signals do."""
        self._set = True

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; several processes agree on one step."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self._set
        if step % AGREE_EVERY:
            return False
        device = (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )
        flag = torch.tensor([float(self._set)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._set = True
