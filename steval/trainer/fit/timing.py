"""How long a batch takes, measured before a run: forward and backward pass of a few batches, whose gradients are thrown away."""

import time

import torch

from steval.model.network import StateTransition
from steval.trainer.config import ComputeSettings
from steval.trainer.fit.feeding import BatchMaker
from steval.trainer.fit.objective import Objective

TIMED = 3
"""Batches that are timed, after one that is not: the first pays for memory and for choosing kernels."""


def time_of_batch(
    network: StateTransition, objective: Objective, maker: BatchMaker, device: torch.device, compute: ComputeSettings
) -> float:
    """Median seconds to read a batch and pass it forward and backward through `network` on `device`, in training mode."""
    network.to(device).train()
    bf16 = compute.precision == "bf16-mixed"
    seconds = []
    for position in range(1 + TIMED):
        started = time.perf_counter()
        batch = maker(position).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16 if bf16 else None, enabled=bf16):
            prediction = network(batch.control_BSG, batch.pert_BP, batch.batch_BS, batch.padding_BS)
            losses = objective(prediction, batch)
        losses[0].backward()
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[TIMED // 2]
