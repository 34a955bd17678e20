"""Batches on their way to a GPU: made in pinned memory that is used over and over, and moved while a step computes.

Nothing is allocated or copied once more on the host, and the host waits for no copy but before it writes a slot anew.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from steval.data.training.row_store import Allocate
from steval.trainer.fit.batches import PackedBatch

ALIGNMENT = 64
"""Bytes; where an array of a slot may begin."""
TO_SPARE = 2
"""Slots beyond the batches that are made or wait: one whose batch travels, one that is free."""


class Slot:
    """Host memory of one batch. It grows to what the largest batch has asked for, and is written anew when `release` says so."""

    def __init__(self, free: "SimpleQueue[Slot]", *, pin: bool):
        self._free, self._pin = free, pin
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._end = 0
        self._wait: Callable[[], object] | None = None

    def begin(self) -> None:
        """Wait until what it held has been read, and begin to fill it."""
        if self._wait is not None:
            self._wait()
        if self._end > len(self._memory):
            self._memory = torch.empty(self._end + self._end // 16, dtype=torch.uint8, pin_memory=self._pin)
        self._end = 0

    def allocate(self, count: int, kind: type) -> np.ndarray:
        """Memory for `count` numbers of a type: the slot's, or where that is too small yet, memory of its own."""
        start, size = self._end, count * np.dtype(kind).itemsize
        self._end += -(-size // ALIGNMENT) * ALIGNMENT
        if self._end > len(self._memory):
            return np.empty(count, dtype=kind)
        return self._memory[start : start + size].numpy().view(kind)

    def release(self, wait: Callable[[], object]) -> None:
        """Let the slot be used again; `wait` returns when what it holds has been read."""
        self._wait = wait
        self._free.put(self)


class Staged(NamedTuple):
    """A batch in a slot."""

    batch: PackedBatch
    slot: Slot


class Ring:
    """Makes batches in slots, for `outstanding` of them at most that are not released yet. May be shared by threads."""

    def __init__(self, make: Callable[[int, Allocate], PackedBatch], outstanding: int, *, pin: bool):
        self._make, self._pin = make, pin
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(outstanding + TO_SPARE):
            self._free.put(Slot(self._free, pin=pin))

    def __call__(self, position: int) -> Staged:
        """The batch of a position; whoever takes it releases its slot."""
        slot = self._free.get()
        slot.begin()
        batch = self._make(position, slot.allocate)
        return Staged(batch.pin() if self._pin else batch, slot)


class Arrival(Protocol):
    """When a batch that was sent has arrived."""

    def synchronize(self) -> object:
        """Wait for it."""
        ...


class Carrier(Protocol):
    """What moves batches to a device."""

    def send(self, batch: PackedBatch) -> tuple[PackedBatch, Arrival]:
        """The batch on the device, when it has arrived; waits for nothing."""
        ...

    def receive(self, batch: PackedBatch, arrival: Any) -> PackedBatch:
        """The batch, safe to use now."""
        ...


class CudaCarrier:
    """Copies on a stream of their own, which the current one waits for; the host does not."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: PackedBatch) -> tuple[PackedBatch, torch.cuda.Event]:
        """Asynchronous from pinned memory."""
        with torch.cuda.stream(self._stream):
            moved = batch.each(lambda tensor: tensor.to(self._device, non_blocking=True))
            arrived = torch.cuda.Event(blocking=True)
            arrived.record(self._stream)
        return moved, arrived

    def receive(self, batch: PackedBatch, arrival: torch.cuda.Event) -> PackedBatch:
        """The current stream waits for the copy, and its memory is kept until that stream has used it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrival)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)
            return tensor

        return batch.each(keep)


class HostFeed(Protocol):
    """Batches in host memory, in slots or each in memory of its own."""

    @property
    def waited(self) -> float: ...

    def __iter__(self) -> Iterator[PackedBatch | Staged]: ...

    def __len__(self) -> int: ...


class MovedFeed:
    """The batches of another feed on a device: the next one travels while a step computes."""

    def __init__(self, feed: HostFeed, carrier: Carrier):
        self._feed, self._carrier = feed, carrier

    @property
    def waited(self) -> float:
        """Seconds of waiting for the host's batches."""
        return self._feed.waited

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Iterator[PackedBatch]:
        before: tuple[PackedBatch, Arrival] | None = None
        for made in self._feed:
            moving = self._carrier.send(made.batch if isinstance(made, Staged) else made)
            if isinstance(made, Staged):
                made.slot.release(moving[1].synchronize)
            if before is not None:
                yield self._carrier.receive(*before)
            before = moving
        if before is not None:
            yield self._carrier.receive(*before)
