"""What a phase runs on: Lightning's Trainer (nothing that writes or prints by itself), the network made ready for precision
and memory, and the generator that dropout draws from."""

import logging
import os
import signal
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steval.errors import ConfigError
from steval.model.hardware import has_native_bf16, slow_bf16_notice
from steval.model.llama import Llama
from steval.model.network import StateTransition
from steval.trainer.config import ComputeSettings
from steval.wording import whole_number

logger = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this process is the one that writes (rank 0 under torchrun, SLURM and Lightning's own launcher)."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def build_trainer(compute: ComputeSettings, device: str, steps: int, accumulation: int) -> L.Trainer:
    """A trainer for `steps` optimiser steps on `device` (auto, cpu, cuda, cuda:N)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    accelerator, devices = _devices(compute, device)
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    count = _count(devices)
    several = count > 1 or compute.num_nodes > 1 or compute.strategy == "ddp"
    strategy: Any = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True) if several else "auto"
    if compute.strategy == "fsdp":
        world = count * compute.num_nodes
        strategy = ModelParallelStrategy(world, 1)
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=compute.num_nodes,
        strategy=strategy,
        precision="bf16-mixed" if compute.precision == "bf16-mixed" else "32-true",
        max_epochs=1,
        max_steps=steps,
        accumulate_grad_batches=accumulation,
        limit_val_batches=0,
        use_distributed_sampler=False,
        barebones=True,
    )


def _devices(compute: ComputeSettings, device: str) -> tuple[str, int | list[int]]:
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and whole_number(number) is None):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {device!r}")
    has_cuda = torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise ConfigError("--device cuda: this machine (or this build of torch) has no CUDA device; use --device cpu")
    on_gpu = has_cuda and kind != "cpu"
    if number:
        return "gpu", [int(number)]
    if compute.devices != "auto":
        return ("gpu" if on_gpu else "cpu"), compute.devices
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return ("gpu", local or torch.cuda.device_count()) if on_gpu else ("cpu", local or 1)


def _count(devices: int | list[int]) -> int:
    return len(devices) if isinstance(devices, list) else devices


def num_processes(compute: ComputeSettings, device: str) -> int:
    """Processes of a run that was asked for `device`, on all nodes; those of torchrun count too."""
    return max(_count(_devices(compute, device)[1]) * compute.num_nodes, int(os.environ.get("WORLD_SIZE", "1")))


def training_device(compute: ComputeSettings, device: str) -> torch.device:
    """Where the first process of a run that was asked for `device` computes."""
    accelerator, devices = _devices(compute, device)
    return torch.device("cpu" if accelerator == "cpu" else f"cuda:{devices[0] if isinstance(devices, list) else 0}")


def fit(trainer: L.Trainer, module: L.LightningModule, batches: Iterable[Any]) -> None:
    """`trainer.fit`; processes that it launched do not outlive an error."""
    try:
        trainer.fit(module, train_dataloaders=batches)
    except (
        SIGTERMException
    ):  # it came while Lightning was getting ready; the run's own handler has seen it, and the step is done
        pass
    except BaseException:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        raise


def make_ready(network: StateTransition, compute: ComputeSettings, device: str) -> None:
    """Hook `network` up for `compute`'s activation checkpointing and precision; warns where the CPU has no bfloat16."""
    if compute.activation_checkpointing:
        _checkpoint_activations(network)
    if compute.precision == "bf16-mixed":
        _keep_norms_in_float32(network)
        on_cpu = _devices(compute, device)[0] == "cpu"
        if on_cpu and not has_native_bf16(torch.device("cpu")) and is_first_process():
            logger.warning("warning: %s", slow_bf16_notice("compute.precision bf16-mixed"))


@contextmanager
def drawing_from(device: torch.device, *words: int) -> Generator[None]:
    """Within, operations on `device` that take no generator (dropout) draw from one whose seed is a function of `words`."""
    generator = _default_generator(device)
    before = generator.get_state()
    # torch.manual_seed would also format a stack trace for each absent backend, milliseconds a step
    generator.manual_seed(_mixed_seed(*words))
    try:
        yield
    finally:
        generator.set_state(before)


def _checkpoint_activations(network: StateTransition) -> None:
    """Activation checkpointing (arXiv:1604.06174): every backbone block keeps its input alone, and is computed again in the
    backward pass; results and gradients stay the same."""
    backbone = network.transformer_backbone
    for block in backbone.layers if isinstance(backbone, Llama) else backbone.h:
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    compute = block.forward

    def forward(*arguments: Any) -> Any:
        if not block.training:
            return compute(*arguments)
        return checkpoint(compute, *arguments, use_reentrant=False)

    block.forward = forward


def _keep_norms_in_float32(network: StateTransition) -> None:
    """Let every norm take its input in its weights' type: sums of squares need the digits, and the fused kernels one type."""
    for module in network.modules():
        if isinstance(module, nn.RMSNorm | nn.LayerNorm):
            module.register_forward_pre_hook(_as_weights)


def _as_weights(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (inputs[0].to(weight.dtype), *inputs[1:])


def _default_generator(device: torch.device) -> torch.Generator:
    """The generator of operations that take none, dropout among them, on `device`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def _mixed_seed(*words: int) -> int:
    """One 63-bit seed from several numbers, by the steps of splitmix64."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
