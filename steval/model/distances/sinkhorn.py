"""The debiased Sinkhorn divergence of two point clouds, as geomloss 0.3.1 computes it (p = 2, scaling 0.5, no reach).

    S(α, β) = OT(α, β) - ½ OT(α, α) - ½ OT(β, β),   cost C(p, q) = |p-q|²/2,   temperature ε = blur²
    softmin: f_i ← -ε log Σ_j exp(h_j - C_ij / ε),   h_j = log β_j + g_j / ε
    S = Σ α_i (f_i^αβ - f_i^αα) + Σ β_j (g_j^αβ - g_j^ββ)

ε falls from diameter² by a factor 4 a step to blur² (Feydy's thesis, 2020, algorithm 3.5: symmetric updates, averaged),
then one full step gives the potentials whose gradient is taken, the loop itself being held constant (envelope theorem).
The diameter is that of the bounding box of the whole batch, as upstream: the schedule, and through it the last digits, are
shared by the sets of a batch. In [0, ∞) up to convergence, best 0, in squared units of the data.
"""

import math

import torch
from torch import Tensor

from steval.model.distances.clouds import PointClouds
from steval.model.distances.pull import Pull

SCALING = 0.5
_LOG_OF_ZERO = -100_000.0


def temperatures(diameter: float, blur: float) -> list[float]:
    """The falling ε of the loop; clouds of no extent start at the last one."""
    if diameter <= 0:
        return [blur**2, blur**2]
    num_steps = max(math.ceil((math.log(blur) - math.log(diameter)) / math.log(SCALING)), 0)
    return [diameter**2, *((diameter * SCALING**step) ** 2 for step in range(num_steps)), blur**2]


class Softmin:
    """One of the four potentials: values at the points of one cloud, facing the points of another (or of its own)."""

    def __init__(self, cost_BST: Tensor, facing_weights_BT: Tensor):
        self._cost_BST = cost_BST
        self._log_weights_BT = torch.where(
            facing_weights_BT > 0, facing_weights_BT.clamp_min(1e-300).log(), _LOG_OF_ZERO
        )
        self._scratch_BST = torch.empty_like(cost_BST)

    def potential(self, epsilon: float, facing_BT: Tensor | None) -> Tensor:
        """`-ε log Σ_j exp(h_j - C_ij / ε)` `[B,S]`, from the potential on the other side (None: zero)."""
        exponents_BST = self._exponents(epsilon, facing_BT)
        largest_BS1 = exponents_BST.amax(dim=2, keepdim=True)
        total_BS = exponents_BST.sub_(largest_BS1).exp_().sum(dim=2)
        return total_BS.log_().add_(largest_BS1[..., 0]).mul_(-epsilon)

    def plan(self, epsilon: float, facing_BT: Tensor) -> Tensor:
        """Where each point goes: weights `[B,S,T]` over the facing points, rows sum to 1."""
        return torch.softmax(self._exponents(epsilon, facing_BT), dim=2)

    def _exponents(self, epsilon: float, facing_BT: Tensor | None) -> Tensor:
        heights_BT = self._log_weights_BT if facing_BT is None else self._log_weights_BT + facing_BT / epsilon
        return torch.add(heights_BT[:, None], self._cost_BST, alpha=-1 / epsilon, out=self._scratch_BST)


class SinkhornProblem:
    """The solved transport problems of a batch of cloud pairs."""

    def __init__(self, clouds: PointClouds, diameter: float, blur: float):
        self._weights = (clouds.left_weights_BS, clouds.right_weights_BT)
        self._epsilon = blur**2
        left_BS, right_BT = self._weights
        between_BST = clouds.left_right_BST / 2
        self._softmins = (
            Softmin(between_BST, right_BT),
            Softmin(between_BST.mT.contiguous(), left_BS),
            Softmin(clouds.left_left_BSS / 2, left_BS),
            Softmin(clouds.right_right_BTT / 2, right_BT),
        )
        self._facing = self._solve(temperatures(diameter, blur))

    def _solve(self, schedule: list[float]) -> list[Tensor]:
        """What each of the four potentials faces after the loop."""
        potentials = [softmin.potential(schedule[0], None) for softmin in self._softmins]
        for epsilon in schedule:
            steps = self._potentials(epsilon, _facing(potentials))
            potentials = [(before + step) / 2 for before, step in zip(potentials, steps, strict=True)]
        return _facing(potentials)

    def _potentials(self, epsilon: float, facing: list[Tensor]) -> list[Tensor]:
        return [softmin.potential(epsilon, other) for softmin, other in zip(self._softmins, facing, strict=True)]

    def value(self) -> Tensor:
        """S of each set `[B]`, float64."""
        left, right, left_self, right_self = self._potentials(self._epsilon, self._facing)
        left_part_B = (self._weights[0] * (left - left_self)).sum(dim=1)
        return left_part_B + (self._weights[1] * (right - right_self)).sum(dim=1)

    def left_pull(self) -> Pull:
        """dS/dx: where the own cloud's plan sends a point minus where the cross plan sends it."""
        return self._pull(self._weights[0], own=2, other=0)

    def right_pull(self) -> Pull:
        """The same for the right cloud, seen as in `PointClouds.swapped`."""
        return self._pull(self._weights[1], own=3, other=1)

    def _pull(self, weights_BS: Tensor, own: int, other: int) -> Pull:
        own_plan, other_plan = (
            self._softmins[index].plan(self._epsilon, self._facing[index]) for index in (own, other)
        )
        return Pull(own_plan.mul_(weights_BS[..., None]), other_plan.mul_(-weights_BS[..., None]))


def _facing(potentials: list[Tensor]) -> list[Tensor]:
    """The cross potentials face each other, the others themselves."""
    return [potentials[1], potentials[0], potentials[2], potentials[3]]
