"""Batches as tensors, made ahead of time: by threads of this process, or by worker processes.

Which cells a batch holds is a function of its position alone, so that a resumed run sees what an uninterrupted one would.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from steval.data.training.row_store import Allocate
from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError
from steval.machine import num_cores
from steval.trainer.fit.batches import PackedBatch
from steval.trainer.fit.staging import CudaCarrier, MovedFeed, Ring

AHEAD = 3
"""Batches that are ready before they are needed."""
FEEDING_THREADS = 6
"""Most threads that make batches for a GPU."""
Made = TypeVar("Made")


class BatchMaker:
    """Batch number `position` of a run for one of several processes: `shard` is (number, count). `packed`: expression that
    is held sparse or on disk comes by its stored values, for a device that makes it dense."""

    def __init__(
        self, sampler: CellSetSampler, features: Tensor, shard: tuple[int, int] = (0, 1), *, packed: bool = False
    ):
        self.sampler = sampler
        self.features = features
        self.shard = shard
        self.packed = packed

    def __call__(self, position: int, allocate: Allocate = np.empty) -> PackedBatch:
        """Positions count on over the epochs; expression is written to memory from `allocate`."""
        epoch, index = divmod(position, self.sampler.num_batches())
        cells = self.sampler.batch(epoch, index, self.shard, keep_sparse=self.packed, allocate=allocate)
        return PackedBatch.of(cells, self.features)


class Feed(Protocol):
    """Batches of the positions asked for, in order; `waited` is the seconds spent waiting for them."""

    @property
    def waited(self) -> float: ...

    def __iter__(self) -> Iterator[PackedBatch]: ...

    def __len__(self) -> int: ...


def open_feed(maker: BatchMaker, positions: range, workers: int, device: torch.device) -> Feed:
    """A feed of `positions` from threads (`workers` 0) or from worker processes, for a network on `device`."""
    on_gpu = device.type == "cuda"
    if workers:
        made = WorkerFeed(maker, positions, workers, pin=on_gpu)
        return MovedFeed(made, CudaCarrier(device)) if on_gpu else made
    if not on_gpu:
        return ThreadFeed(maker, positions)
    threads = feeding_threads()
    ring = Ring(maker, AHEAD + threads, pin=True)
    return MovedFeed(ThreadFeed(ring, positions, threads), CudaCarrier(device))


def feeding_threads() -> int:
    """Threads that make batches for a GPU: a processor is left to launch its work."""
    return min(max(num_cores() - 1, 1), FEEDING_THREADS)


class ThreadFeed(Generic[Made]):
    """What `make` makes of positions, by threads ahead of its use: `AHEAD + threads` of them at most; an error in one is raised
    where it is asked for."""

    def __init__(self, make: Callable[[int], Made], positions: range, threads: int = 1):
        self._make, self._positions, self._threads = make, positions, threads
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Made]:
        pool = ThreadPoolExecutor(self._threads, "batches")
        ahead: deque[Future[Made]] = deque()
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

    def _next(self, ahead: "deque[Future[Made]]") -> Made:
        started = time.perf_counter()
        made = ahead.popleft().result()
        self.waited += time.perf_counter() - started
        return made


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
