"""A running average of the weights (arXiv:1803.05407, exponential form): `a ← d · a + (1 - d) · w` after each step.

Early on `d` is at most `(1 + t) / (10 + t)` at step t, so that the start is forgotten.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the parameters that train; the others are equal to the network's own."""

    def __init__(self, network: nn.Module, decay: float):
        self._decay = decay
        self._own = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._own.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Within, the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up the averages of a saved state."""
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, own in self._own.items():
            own.data, self._average[name] = self._average[name], own.data
