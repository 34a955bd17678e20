"""Losses between predicted and measured cell sets: energy, sinkhorn, their weighted sum, and mse.

Values and gradients are geomloss 0.3.1's to 1e-5 relative in float64; in float32 they are no further from float64 than
geomloss's (`steval.model.distances.clouds` says how). Shape letters: B sets, S predicted cells, T measured cells, G columns.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steval.model.distances.clouds import PointClouds, measure_clouds
from steval.model.distances.energy import energy_pull, energy_value
from steval.model.distances.pull import Pull
from steval.model.distances.sinkhorn import SinkhornProblem
from steval.model.loss_settings import LossSettings


class SetLoss(Protocol):
    """A loss of each set `[B]`, not negative (sinkhorn: up to convergence), best 0."""

    def __call__(
        self,
        predicted_BSG: Tensor,
        measured_BTG: Tensor,
        padding_BS: Tensor | None = None,
        measured_padding_BT: Tensor | None = None,
    ) -> Tensor:
        """Compare predicted with measured cells; padding is True where a row is padding, of which no set may consist
        alone. Without `measured_padding_BT`, `padding_BS` holds for both when S = T."""
        ...


def build_loss(settings: LossSettings) -> SetLoss:
    """The loss that `settings` names."""
    if settings.kind == "mse":
        return mean_squared_error
    return CloudLoss(settings)


def mean_squared_error(
    predicted_BSG: Tensor,
    measured_BTG: Tensor,
    padding_BS: Tensor | None = None,
    measured_padding_BT: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of cells in the same place `[B]`, in squared units of the data; best 0."""
    _check(predicted_BSG, measured_BTG, padding_BS)
    if predicted_BSG.shape != measured_BTG.shape:
        raise ValueError(
            f"mse compares cell by cell: predicted {tuple(predicted_BSG.shape)} and measured "
            f"{tuple(measured_BTG.shape)} must have equal shapes; use energy for sets of different sizes"
        )
    if measured_padding_BT is not None:
        padding_BS = measured_padding_BT if padding_BS is None else padding_BS | measured_padding_BT
    squared_BS = _without_padding(predicted_BSG - measured_BTG, padding_BS).square().mean(dim=2)
    if padding_BS is None:
        return squared_BS.mean(dim=1)
    return squared_BS.sum(dim=1) / (~padding_BS).sum(dim=1)


class CloudLoss:
    """`energy`, `sinkhorn` or `se` of two point clouds."""

    def __init__(self, settings: LossSettings):
        self._blur = settings.blur
        self._energy_weight = {"energy": 1.0, "sinkhorn": 0.0, "se": settings.energy_weight}[settings.kind]
        self._sinkhorn_weight = {"energy": 0.0, "sinkhorn": 1.0, "se": settings.sinkhorn_weight}[settings.kind]

    def __call__(
        self,
        predicted_BSG: Tensor,
        measured_BTG: Tensor,
        padding_BS: Tensor | None = None,
        measured_padding_BT: Tensor | None = None,
    ) -> Tensor:
        """As `SetLoss`; half precision is computed in float32."""
        _check(predicted_BSG, measured_BTG, padding_BS)
        if measured_padding_BT is None and predicted_BSG.shape[1] == measured_BTG.shape[1]:
            measured_padding_BT = padding_BS
        both_double = predicted_BSG.dtype == measured_BTG.dtype == torch.float64
        dtype = torch.float64 if both_double else torch.float32
        predicted_BSG = _without_padding(predicted_BSG.to(dtype), padding_BS)
        measured_BTG = _without_padding(measured_BTG.to(dtype), measured_padding_BT)
        return _CloudLossFunction.apply(predicted_BSG, measured_BTG, padding_BS, measured_padding_BT, self)

    def evaluate(
        self, clouds: PointClouds, diameter: float, sides: tuple[bool, bool]
    ) -> tuple[Tensor, Pull | None, Pull | None]:
        """Value of each set, and the gradients of the sides asked for."""
        values: list[Tensor] = []
        left: list[Pull] = []
        right: list[Pull] = []
        if self._energy_weight:
            values.append(energy_value(clouds) * self._energy_weight)
            left += [energy_pull(clouds).times(self._energy_weight)] if sides[0] else []
            right += [energy_pull(clouds.swapped).times(self._energy_weight)] if sides[1] else []
        if self._sinkhorn_weight:
            problem = SinkhornProblem(clouds, diameter, self._blur)
            values.append(problem.value() * self._sinkhorn_weight)
            left += [problem.left_pull().times(self._sinkhorn_weight)] if sides[0] else []
            right += [problem.right_pull().times(self._sinkhorn_weight)] if sides[1] else []
        return torch.stack(values).sum(dim=0), _sum(left), _sum(right)

    def diameter(self, clouds: list[tuple[Tensor, Tensor | None]]) -> float:
        """Diagonal of the bounding box of all points, which starts the temperatures of `sinkhorn`; else not needed."""
        if not self._sinkhorn_weight:
            return 0.0
        rows = [points.flatten(0, 1) if padding is None else points[~padding] for points, padding in clouds]
        lowest = torch.stack([part.amin(dim=0) for part in rows]).amin(dim=0)
        highest = torch.stack([part.amax(dim=0) for part in rows]).amax(dim=0)
        return float((highest - lowest).double().norm())


class _CloudLossFunction(torch.autograd.Function):
    """Distances once, their use in value and gradient without keeping a graph of S×S matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        predicted_BSG: Tensor,
        measured_BTG: Tensor,
        padding_BS: Tensor | None,
        measured_padding_BT: Tensor | None,
        loss: CloudLoss,
    ) -> Tensor:
        # Under autocast the products would be of half precision, and small distances noise.
        with torch.autocast(predicted_BSG.device.type, enabled=False):
            clouds = measure_clouds(predicted_BSG, measured_BTG, padding_BS, measured_padding_BT)
            diameter = loss.diameter([(predicted_BSG, padding_BS), (measured_BTG, measured_padding_BT)])
            sides = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
            value_B, ctx.left_pull, ctx.right_pull = loss.evaluate(clouds, diameter, sides)
        ctx.clouds = clouds if any(sides) else None
        ctx.save_for_backward(predicted_BSG, measured_BTG)
        return value_B.to(predicted_BSG.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        predicted_BSG, measured_BTG = ctx.saved_tensors
        left = right = None
        with torch.autocast(upstream_B.device.type, enabled=False):
            if ctx.left_pull is not None:
                left = ctx.left_pull.spread(ctx.clouds, predicted_BSG, measured_BTG, upstream_B)
            if ctx.right_pull is not None:
                right = ctx.right_pull.spread(ctx.clouds.swapped, measured_BTG, predicted_BSG, upstream_B)
        return left, right, None, None, None


def _without_padding(points: Tensor, padding: Tensor | None) -> Tensor:
    return points if padding is None else points.masked_fill(padding[..., None], 0)


def _sum(pulls: list[Pull]) -> Pull | None:
    return None if not pulls else pulls[0] if len(pulls) == 1 else pulls[0].plus(pulls[1])


def _check(predicted_BSG: Tensor, measured_BTG: Tensor, padding_BS: Tensor | None) -> None:
    shapes = tuple(predicted_BSG.shape), tuple(measured_BTG.shape)
    if len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[0][0] != shapes[1][0] or shapes[0][2] != shapes[1][2]:
        raise ValueError(
            f"a loss compares predicted [sets, cells, columns] with measured [sets, cells, columns]; got {shapes[0]} "
            f"and {shapes[1]}, whose sets and columns must be equal"
        )
    if padding_BS is not None and tuple(padding_BS.shape) != shapes[0][:2]:
        raise ValueError(f"padding must be of shape {shapes[0][:2]}, got {tuple(padding_BS.shape)}")
