"""The energy distance of two point clouds, as geomloss 0.3.1 defines it.

    E(x, y) = ½ <α-β, K (α-β)>,  K(p, q) = -d(p, q),  d(p, q) = sqrt(max(|p-q|², 1e-8))
            = Σ α_i β_j d(x_i, y_j) - ½ Σ α_i α_j d(x_i, x_j) - ½ Σ β_i β_j d(y_i, y_j)

In [0, ∞), best 0, in the units of the data. (The statistician's energy distance is twice this.)
"""

import torch
from torch import Tensor

from steval.model.distances.clouds import PointClouds
from steval.model.distances.pull import Pull

FLOOR = 1e-8
"""Smallest squared distance; below it a pair has no gradient, so that identical points give a finite one."""


def energy_value(clouds: PointClouds) -> Tensor:
    """E of each set `[B]`, float64."""
    left_BS, right_BT = clouds.left_weights_BS, clouds.right_weights_BT
    return (
        _mean_distance(clouds.left_right_BST, left_BS, right_BT)
        - _mean_distance(clouds.left_left_BSS, left_BS, left_BS) / 2
        - _mean_distance(clouds.right_right_BTT, right_BT, right_BT) / 2
    )


def energy_pull(clouds: PointClouds) -> Pull:
    """dE/dx: unit vectors from the other cloud minus unit vectors from the own one."""
    left_BS, right_BT = clouds.left_weights_BS, clouds.right_weights_BT
    own_BSS = _inverse_distance(clouds.left_left_BSS, left_BS, left_BS)
    other_BST = _inverse_distance(clouds.left_right_BST, left_BS, right_BT)
    own_BSS.diagonal(dim1=1, dim2=2).add_(other_BST.sum(dim=2) - own_BSS.sum(dim=2))
    return Pull(own_BSS, -other_BST)


def _mean_distance(squared: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
    return torch.einsum("bij,bi,bj->b", squared.clamp_min(FLOOR).sqrt(), row_weights, column_weights)


def _inverse_distance(squared: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
    inverse = torch.where(squared >= FLOOR, squared.clamp_min(FLOOR).rsqrt(), 0.0)
    return inverse * row_weights[:, :, None] * column_weights[:, None, :]
