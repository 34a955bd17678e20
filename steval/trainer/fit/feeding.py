"""Batches as tensors, made ahead of time: by threads of this process, or by worker processes; and moved ahead of their use.

Which cells a batch holds is a function of its position alone, so that a resumed run sees what an uninterrupted one would.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError
from steval.machine import num_cores
from steval.trainer.fit.batches import PackedBatch

AHEAD = 3
"""Batches that are ready before they are needed."""
FEEDING_THREADS = 4
"""Most threads that make batches for a GPU."""


class BatchMaker:
    """Batch number `position` of a run for one of several processes: `shard` is (number, count). `packed`: expression that
    is held sparse stays so, for a device that makes it dense."""

    def __init__(
        self, sampler: CellSetSampler, features: Tensor, shard: tuple[int, int] = (0, 1), *, packed: bool = False
    ):
        self.sampler = sampler
        self.features = features
        self.shard = shard
        self.packed = packed

    def __call__(self, position: int) -> PackedBatch:
        """Positions count on over the epochs."""
        epoch, index = divmod(position, self.sampler.num_batches())
        return PackedBatch.of(self.sampler.batch(epoch, index, self.shard, keep_sparse=self.packed), self.features)


class Feed(Protocol):
    """Batches of the positions asked for, in order; `waited` is the seconds spent waiting for them."""

    @property
    def waited(self) -> float: ...

    def __iter__(self) -> Iterator[PackedBatch]: ...

    def __len__(self) -> int: ...


def open_feed(maker: BatchMaker, positions: range, workers: int, device: torch.device) -> Feed:
    """A feed of `positions` from threads (`workers` 0) or from worker processes, for a network on `device`."""
    on_gpu = device.type == "cuda"
    threads = min(max(num_cores() - 1, 1), FEEDING_THREADS) if on_gpu else 1
    feed: Feed = (
        WorkerFeed(maker, positions, workers, pin=on_gpu)
        if workers
        else ThreadFeed(maker, positions, threads, pin=on_gpu)
    )
    return MovedFeed(feed, device) if on_gpu else feed


class ThreadFeed:
    """Batches made by threads ahead of their use; an error in one is raised where the batch is asked for."""

    def __init__(self, maker: BatchMaker, positions: range, threads: int = 1, *, pin: bool = False):
        self._maker, self._positions, self._threads, self._pin = maker, positions, threads, pin
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[PackedBatch]:
        pool = ThreadPoolExecutor(self._threads, "batches")
        ahead: deque[Future[PackedBatch]] = deque()
        coming = iter(self._positions)
        try:
            for position in coming:
                ahead.append(pool.submit(self._make, position))
                if len(ahead) >= AHEAD + self._threads:
                    yield self._next(ahead)
            while ahead:
                yield self._next(ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, position: int) -> PackedBatch:
        batch = self._maker(position)
        return batch.pin() if self._pin else batch

    def _next(self, ahead: "deque[Future[PackedBatch]]") -> PackedBatch:
        started = time.perf_counter()
        batch = ahead.popleft().result()
        self.waited += time.perf_counter() - started
        return batch


class MovedFeed:
    """The batches of another feed on a GPU: the next one travels, on a stream of its own, while a step computes."""

    def __init__(self, feed: Feed, device: torch.device):
        self._feed = feed
        self._device = device

    @property
    def waited(self) -> float:
        """Seconds of waiting for the host's batches."""
        return self._feed.waited

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Iterator[PackedBatch]:
        stream = torch.cuda.Stream(self._device)
        before: tuple[PackedBatch, torch.cuda.Event] | None = None
        for batch in self._feed:
            with torch.cuda.stream(stream):
                moved = batch.each(lambda tensor: tensor.to(self._device, non_blocking=True))
                arrived = torch.cuda.Event()
                arrived.record(stream)
            if before is not None:
                yield self._arrived(*before)
            before = moved, arrived
        if before is not None:
            yield self._arrived(*before)

    def _arrived(self, batch: PackedBatch, arrived: torch.cuda.Event) -> PackedBatch:
        """The batch, safe to use on the current stream, which waits for it; the host does not."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)
            return tensor

        return batch.each(keep)


class WorkerFeed:
    """Batches made by worker processes; one that dies is a `ConfigError` that says how to go on."""

    def __init__(self, maker: BatchMaker, positions: range, workers: int, *, pin: bool = False):
        self._positions = positions
        self._loader: Any = torch.utils.data.DataLoader(
            _Positions(maker),
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=2,
            multiprocessing_context="spawn",
            generator=torch.Generator(),
        )
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[PackedBatch]:
        batches = iter(self._loader)
        for position in self._positions:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise ConfigError(
                    f"a process that reads batches died at batch {position} ({str(error).splitlines()[0]}); nothing of "
                    "value is lost: continue with --resume, with fewer compute.workers if memory ran out"
                ) from error
            self.waited += time.perf_counter() - started
            yield batch


class _Positions(torch.utils.data.Dataset[PackedBatch]):
    def __init__(self, maker: BatchMaker):
        self._maker = maker

    def __getitem__(self, index: int) -> PackedBatch:
        return self._maker(index)
