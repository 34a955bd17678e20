"""Validation on fixed sets: the same cells and controls every time, shared out over the processes."""

import torch
import torch.distributed as dist

from steval.model.network import StateTransition
from steval.trainer.fit.feeding import BatchMaker, open_feed
from steval.trainer.fit.objective import Objective


class Validator:
    """Mean losses over the fixed sets, each batch weighted by its sets.

    With several processes each takes every n-th batch, and the sums are added up: all of them get the same values. One that has no
    batch left in the last round computes another and leaves it out.
    """

    def __init__(self, maker: BatchMaker, rank: int, world_size: int):
        self._maker = maker
        count = maker.sampler.num_batches()
        # as many for each: sharded networks are gathered by all processes together; positions beyond the last begin anew
        self._positions = range(rank, -(-count // world_size) * world_size, world_size)
        self._count = count

    @torch.no_grad()
    def __call__(
        self, network: StateTransition, objective: Objective, device: torch.device, autocast_dtype: torch.dtype | None
    ) -> dict[str, float]:
        """`val/<name>` for each loss; the network is left in the mode that it was in."""
        was_training = network.training
        network.eval()
        sums = torch.zeros(len(objective.names) + 1, dtype=torch.float64, device=device)
        for position, batch in zip(self._positions, open_feed(self._maker, self._positions, 0, device), strict=True):
            on_device = batch.to(device)
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                prediction = network(on_device.control_BSG, on_device.pert_BP, on_device.batch_BS, on_device.padding_BS)
                losses = objective(prediction, on_device)
            if position >= self._count:
                continue
            num_sets = batch.pert_BP.shape[0]
            sums[:-1] += losses.double() * num_sets
            sums[-1] += num_sets
        network.train(was_training)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        values = (sums[:-1] / sums[-1]).tolist()
        return {f"val/{name}": value for name, value in zip(objective.names, values, strict=True)}
