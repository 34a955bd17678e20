"""A whole optimiser step recorded once and replayed: a GPU is told with one call what the host would launch 2,000 kernels for.

The first steps run as they are (they allocate the optimiser's state, and let `torch.compile` work); then one is recorded as
a CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), and every further batch is written into
the recorded one's memory. A batch of other shapes is computed as it is.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from steval.model.hardware import has_fast_double
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.batches import Batch, PackedBatch

logger = logging.getLogger(__name__)

WARM_UP = 2
"""Steps before one is recorded."""


class Recorder(Protocol):
    """How work is run before it is recorded, and recorded."""

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` where it could be recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays `work`; nothing has been computed yet."""
        ...

    def finish(self) -> None:
        """Wait for the last replay."""
        ...


class CudaRecorder:
    """CUDA graphs on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` on the stream; the current one waits for it, the host does not."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The graph's `replay`."""
        graph = torch.cuda.CUDAGraph()
        # the threads that make batches pin memory meanwhile, which is none of the graph's business
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def finish(self) -> None:
        """Wait for the stream and the device."""
        torch.cuda.synchronize(self._device)


class Direct:
    """No recording: the work itself, which is what a replay must equal."""

    def run(self, work: Callable[[], None]) -> None:
        """Run `work`."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` itself."""
        return work

    def finish(self) -> None:
        """Nothing is under way."""


class ReplayedStep:
    """`compute(batch)` does one optimiser step and returns a row of its losses and norms; `device` is where it works."""

    def __init__(self, compute: Callable[[Batch], Tensor], device: torch.device, recorder: Recorder):
        self._compute, self._device, self._recorder = compute, device, recorder
        self._inputs: Batch | None = None
        self._row = torch.empty(0)
        self._replay: Callable[[], None] | None = None
        self._done = 0
        self._has_told = False

    def __call__(self, packed: PackedBatch) -> Tensor:
        """The row of one step on the batch, the caller's own."""
        if self._inputs is None:
            self._inputs = packed.to(self._device).each(torch.clone)
        elif not packed.fits(self._inputs):
            return self._computed_apart(packed.to(self._device))
        else:
            packed.write_into(self._inputs)
        if self._done < WARM_UP:
            self._recorder.run(self._step)
        else:
            if self._replay is None:
                self._replay = self._recorder.record(self._step)
            self._replay()
        self._done += 1
        return self._row.clone()

    def release(self) -> None:
        """Give the recorded step's memory back."""
        self._recorder.finish()
        self._replay, self._inputs, self._row = None, None, torch.empty(0)

    def _step(self) -> None:
        assert self._inputs is not None
        self._row = self._compute(self._inputs)

    def _computed_apart(self, batch: Batch) -> Tensor:
        if not self._has_told:
            self._has_told = True
            logger.warning(
                "warning: a batch has other shapes than the recorded step; such batches are computed unrecorded"
            )
        rows: list[Tensor] = []
        self._recorder.run(lambda: rows.append(self._compute(batch)))
        return rows[0].clone()


def open_recorder(config: FinetuneConfig, device: torch.device, world_size: int) -> Recorder | None:
    """What records the steps of a phase; None where `compute.cuda_graph` is off, or it cannot be (noted if asked for)."""
    wanted = config.compute.cuda_graph
    if wanted is False:
        return None
    obstacle = _obstacle(config, device, world_size)
    if obstacle is None:
        return CudaRecorder(device)
    logger.log(
        logging.INFO if wanted is True else logging.DEBUG,
        "compute.cuda_graph: steps are not recorded, for %s",
        obstacle,
    )
    return None


def _obstacle(config: FinetuneConfig, device: torch.device, world_size: int) -> str | None:
    """What stands in the way of recording a step."""
    if device.type != "cuda":
        return "there is no GPU in use"
    if world_size > 1 or config.compute.strategy != "auto":
        return "several processes share a step"
    if config.sets.accumulation > 1:
        return "sets.accumulation is above 1"
    if config.compute.activation_checkpointing:
        return "compute.activation_checkpointing is on"
    if config.loss.kind in ("sinkhorn", "se"):
        return f"the host takes part in the loss {config.loss.kind}"
    if config.loss.kind == "energy" and not has_fast_double(device):
        return "the host takes part in distances on a card without fast float64"
    return None
