"""What a run will take of each device's memory, for each way to share and to spare it; from shapes alone.

Activations are counted as PyTorch keeps them for the backward pass (tests compare with what autograd saves, and with measured
peaks). Shape letters: C token, I inner size of a block's MLP, G output columns, S cells.
"""

from dataclasses import dataclass

import torch

from steval.limits import require_memory
from steval.model.config import LlamaConfig, ModelConfig
from steval.model.groups import block_index
from steval.model.lora import num_adapted
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.feeding import AHEAD
from steval.trainer.progress.notices import Notice
from steval.wording import counted, memory_size

FLOAT = 4
"""Bytes of a float32."""
MIXED = 2.65
"""Mean bytes of an activation under bf16-mixed: products keep bfloat16, norms float32."""
DEVICES = (2, 4, 8)
"""Devices that FSDP is told for."""
AT_LEAST = 2 / 3
"""Of an estimate: peaks were measured within a third of it."""
PACKED = 0.3
"""Of a dense batch: those that are on their way to a GPU, sparse."""


@dataclass(frozen=True)
class Choice:
    """A way to compute a step."""

    precision: str
    recompute: bool
    """`compute.activation_checkpointing`."""
    shards: int = 1
    """Devices that share the network's tensors (`compute.strategy: fsdp`); 1: each device holds all."""

    @property
    def devices(self) -> str:
        """For people."""
        return "1 / ddp" if self.shards == 1 else f"{self.shards} fsdp"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device at the peak of a step."""

    weights: float
    gradients: float
    optimiser: float
    """Two moments of what trains, and its running average."""
    activations: float
    batch: float
    """Cells of the batch and of those that come next, and what the loss computes with."""

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.batch


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network, and of those that train in the largest phase."""

    total: int
    trainable: int
    largest_block: int
    """Of one backbone block."""
    beside_blocks: int

    @classmethod
    def of(cls, config: FinetuneConfig, model: ModelConfig) -> "NetworkSize":
        """Of the network that a run trains."""
        sizes = {name: p.numel() for name, p in skeleton(model).named_parameters()}
        num_layers = model.backbone.num_layers
        blocks = [0] * num_layers
        for name, size in sizes.items():
            block = block_index(name)
            if block is not None:
                blocks[block] += size
        total = sum(sizes.values())
        trainable = max(
            sum(size for name, size in sizes.items() if phase.trains_parameter(name, num_layers))
            + (0 if phase.lora is None else num_adapted(skeleton(model), phase.lora))
            for phase in config.phases
        )
        return cls(total, trainable, max(blocks), total - sum(blocks))


def skeleton(model: ModelConfig) -> StateTransition:
    """The network without memory."""
    with torch.device("meta"):
        return StateTransition(model)


def own_choice(config: FinetuneConfig, devices: int = 1) -> Choice:
    """What the configuration says, on `devices` devices."""
    compute = config.compute
    shards = devices if compute.strategy == "fsdp" else 1
    return Choice(compute.precision, compute.activation_checkpointing, shards)


def device_memory(
    config: FinetuneConfig, model: ModelConfig, size: NetworkSize, choice: Choice, *, on_gpu: bool
) -> DeviceMemory:
    """The peak of a step on one device."""
    mixed = choice.precision == "bf16-mixed"
    cells = config.sets.size * config.sets.per_batch
    # what does not belong to a block stays gathered over the step, blocks are gathered one by one, the next one ahead
    gathered = 0 if choice.shards == 1 else size.beside_blocks + 2 * size.largest_block
    copies = (gathered or size.total) * 2 if mixed else 0
    kept = kept_values(model, recompute=choice.recompute) * (MIXED if mixed else FLOAT)
    averaged = size.trainable if config.average_weights else 0
    decoded = model.gene_decoder.gene_dim if model.gene_decoder else 0
    return DeviceMemory(
        weights=FLOAT * (size.total / choice.shards + gathered) + copies,
        gradients=FLOAT * (size.trainable / choice.shards + gathered / 2),
        optimiser=FLOAT * (2 * size.trainable + averaged) / choice.shards,
        activations=cells * kept,
        batch=cells * (_cells_of_batch(model, decoded, on_gpu) + _loss(model.output_dim + decoded, on_gpu)),
    )


def kept_values(model: ModelConfig, *, recompute: bool) -> int:
    """Values that one cell keeps for the backward pass; `recompute`: of a block its input alone, and one whole block."""
    width, inner = model.hidden_dim, model.backbone.intermediate_size
    block = 10 * width + 4 * inner if isinstance(model.backbone, LlamaConfig) else 8 * width + 2 * inner
    layers = model.backbone.num_layers
    blocks = layers * width + block if recompute else layers * block
    encoders = 3 * width * (model.num_encoder_layers if model.use_basal_projection else 1)
    head = 3 * width * (model.num_decoder_layers - 1) + 2 * model.output_dim
    bottleneck = model.output_dim // 4 if model.has_bottleneck else 0
    decoder = model.gene_decoder
    genes = 0 if decoder is None else 3 * sum(decoder.hidden_dims) + 2 * decoder.gene_dim
    return blocks + encoders + head + bottleneck + genes


def estimate_memory(config: FinetuneConfig, model: ModelConfig, *, on_gpu: bool) -> float:
    """Bytes on a device, as the configuration has it; under FSDP on two devices."""
    size = NetworkSize.of(config, model)
    return device_memory(config, model, size, own_choice(config, DEVICES[0]), on_gpu=on_gpu).total


def copies_memory(config: FinetuneConfig, model: ModelConfig) -> float:
    """Bytes of the first process's host memory, beside a device's own, for copies while they are written."""
    return _copies(config, NetworkSize.of(config, model))


def require_fitting(config: FinetuneConfig, model: ModelConfig, *, on_gpu: bool) -> None:
    """A `ConfigError` for a step that takes more memory than this process may ever have.

    On a GPU that is what the batch takes before it is sent there, and the weights; the GPU itself says when it is full.
    """
    size, sets = NetworkSize.of(config, model), config.sets
    step = device_memory(config, model, size, own_choice(config, DEVICES[0]), on_gpu=on_gpu)
    require_memory(
        AT_LEAST * (FLOAT * size.total + PACKED * step.batch if on_gpu else step.total),
        f"a step on {counted(sets.per_batch, 'set')} of {counted(sets.size, 'cell')} by a network of "
        f"{counted(size.total, 'parameter')}",
        f"lower sets.per_batch (raise sets.accumulation, now {sets.accumulation}, by the same factor), sets.size, or the sizes "
        "under network",
    )


def memory_notices(config: FinetuneConfig, model: ModelConfig, *, on_gpu: bool) -> list[Notice]:
    """A table of every choice, and what the run takes beside its devices."""
    size = NetworkSize.of(config, model)
    choices = [
        Choice(precision, recompute, shards)
        for precision in ("32", "bf16-mixed")
        for recompute in (False, True)
        for shards in (1, *DEVICES)
    ]
    found = [device_memory(config, model, size, choice, on_gpu=on_gpu) for choice in choices]
    unit, divisor = ("GiB", 2**30) if max(memory.total for memory in found) >= 2**30 else ("MiB", 2**20)
    rows = [
        (
            choice.devices,
            choice.precision.removesuffix("-mixed"),
            "yes" if choice.recompute else "no",
            *(
                f"{part / divisor:.2f}"
                for part in (
                    memory.weights,
                    memory.gradients,
                    memory.optimiser,
                    memory.activations,
                    memory.batch,
                    memory.total,
                )
            ),
        )
        for choice, memory in zip(choices, found, strict=True)
    ]
    sets = config.sets
    holder, batch = "GPU" if on_gpu else "process", f"{counted(sets.per_batch, 'set')} of {counted(sets.size, 'cell')}"
    title = f"Memory of a {holder} in {unit}: {counted(size.total, 'parameter')}, {batch}"
    columns = ("devices", "precision", "recompute", "weights", "grads", "Adam", "kept", "cells", "total")
    return [Notice(title, columns, tuple(rows)), _beside_devices(config, size)]


def _beside_devices(config: FinetuneConfig, size: NetworkSize) -> Notice:
    weights, copies = FLOAT * size.total, _copies(config, size)
    state = memory_size(copies - weights)
    rows = (
        ("checkpoint copies", f"up to {memory_size(copies)} of the first process's host memory, while they are written"),
        ("cells", f"up to {config.data.memory_gb:g} GiB of host memory a process (data.memory_gb)"),
        ("disk", f"{memory_size(weights)} a checkpoint, {state} for last.ckpt; one more of each while writing"),
    )  # fmt: skip
    return Notice("Beside the devices", ("what", "how much"), rows)


def _copies(config: FinetuneConfig, size: NetworkSize) -> float:
    """Bytes of the best weights and of a state to resume from."""
    averaged = size.trainable if config.average_weights else 0
    return FLOAT * (2 * size.total + 2 * size.trainable + averaged)


def _cells_of_batch(model: ModelConfig, decoded: int, on_gpu: bool) -> float:
    """Bytes of a cell, its control cell and its genes: of the batch at hand and of those made ahead."""
    dense = FLOAT * (2 * model.input_dim + decoded)
    return dense * (1 + PACKED) if on_gpu else dense * (AHEAD + 2)


def _loss(columns: int, on_gpu: bool) -> float:
    """Bytes of a cell in the loss: both clouds around their mean (float64 on a GPU), the prediction, its gradient."""
    return columns * ((8 if on_gpu else FLOAT) * 2 + 2 * FLOAT)
