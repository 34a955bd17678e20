"""Lightning's Trainer for a phase: devices, strategy, precision; nothing that writes or prints by itself."""

import logging
import os
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy

from steval.errors import ConfigError
from steval.trainer.config import ComputeSettings


def is_first_process() -> bool:
    """Whether this process is the one that writes (rank 0 under torchrun, SLURM and Lightning's own launcher)."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def on_cpu(compute: ComputeSettings, device: str) -> bool:
    """Whether a run that was asked for `device` (auto, cpu, cuda, cuda:N) trains on the CPU."""
    return _devices(compute, device)[0] == "cpu"


def build_trainer(compute: ComputeSettings, device: str, steps: int, accumulation: int) -> L.Trainer:
    """A trainer for `steps` optimiser steps on `device` (auto, cpu, cuda, cuda:N)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    accelerator, devices = _devices(compute, device)
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    count = len(devices) if isinstance(devices, list) else devices
    several = count > 1 or compute.num_nodes > 1
    strategy: Any = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True) if several else "auto"
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
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
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
