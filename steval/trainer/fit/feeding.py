"""Batches as tensors, made ahead of time: by a thread of this process, or by worker processes.

Which cells a batch holds is a function of its position alone, so that a resumed run sees what an uninterrupted one would.
Shape letters: B sets, S cells, G columns of the input, P perturbation features, D genes of a separate gene target.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError

AHEAD = 3
"""Batches that are ready before they are needed."""


class Batch(NamedTuple):
    """What one forward and backward pass takes; expression is lognorm."""

    control_BSG: Tensor
    target_BSG: Tensor
    pert_BP: Tensor
    batch_BS: Tensor | None
    padding_BS: Tensor | None
    genes_BSD: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; asynchronous from pinned memory."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same in pinned memory."""
        return self.each(lambda tensor: tensor.pin_memory())

    def each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of every tensor moved."""
        return Batch(
            move(self.control_BSG),
            move(self.target_BSG),
            move(self.pert_BP),
            *(None if tensor is None else move(tensor) for tensor in self[3:]),
        )


class BatchMaker:
    """Batch number `position` of a run for one of several processes: `shard` is (number, count)."""

    def __init__(self, sampler: CellSetSampler, features: Tensor, shard: tuple[int, int] = (0, 1)):
        self.sampler = sampler
        self.features = features
        self.shard = shard

    def __call__(self, position: int) -> Batch:
        """Positions count on over the epochs."""
        epoch, index = divmod(position, self.sampler.num_batches())
        cells = self.sampler.batch(epoch, index, self.shard)
        return Batch(
            control_BSG=torch.from_numpy(cells.control_BSG),
            target_BSG=torch.from_numpy(cells.target_BSG),
            pert_BP=self.features[torch.from_numpy(cells.pert_codes_B)],
            batch_BS=torch.from_numpy(cells.batch_codes_BS),
            padding_BS=None if cells.padding_BS is None else torch.from_numpy(cells.padding_BS),
            genes_BSD=None if cells.target_genes_BSD is None else torch.from_numpy(cells.target_genes_BSD),
        )


class Feed(Protocol):
    """Batches of the positions asked for, in order; `waited` is the seconds spent waiting for them."""

    waited: float

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


def open_feed(maker: BatchMaker, positions: range, workers: int, *, pin: bool = False) -> Feed:
    """A feed of `positions` from a thread (`workers` 0) or from worker processes."""
    return WorkerFeed(maker, positions, workers, pin=pin) if workers else ThreadFeed(maker, positions, pin=pin)


class ThreadFeed:
    """Batches made by one thread ahead of their use; an error in it is raised where the batch is asked for."""

    def __init__(self, maker: BatchMaker, positions: range, *, pin: bool = False):
        self._maker, self._positions, self._pin = maker, positions, pin
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | Exception] = queue.Queue(AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop), name="batches", daemon=True)
        thread.start()
        try:
            for _ in self._positions:
                started = time.perf_counter()
                batch = ready.get()
                self.waited += time.perf_counter() - started
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            stop.set()
            thread.join()

    def _fill(self, ready: "queue.Queue[Batch | Exception]", stop: threading.Event) -> None:
        for position in self._positions:
            try:
                made: Batch | Exception = self._maker(position)
                made = made.pin() if self._pin and isinstance(made, Batch) else made
            except Exception as error:  # noqa: BLE001 (handed to the consumer, which raises it)
                made = error
            while not stop.is_set():
                try:
                    ready.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(made, Exception):
                return


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

    def __iter__(self) -> Iterator[Batch]:
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


class _Positions(torch.utils.data.Dataset[Batch]):
    def __init__(self, maker: BatchMaker):
        self._maker = maker

    def __getitem__(self, index: int) -> Batch:
        return self._maker(index)
