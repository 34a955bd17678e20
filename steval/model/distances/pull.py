"""The gradient of a loss between two clouds with respect to one of them, before it is spread over the dimensions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steval.model.distances.clouds import PointClouds


@dataclass(frozen=True)
class Pull:
    """Gradient of each left point as a sum over points: `own · left + other · right`, whose rows sum to 0 together."""

    own_BSS: Tensor
    other_BST: Tensor

    def plus(self, other: "Pull") -> "Pull":
        """The gradient of the sum of two losses."""
        return Pull(self.own_BSS + other.own_BSS, self.other_BST + other.other_BST)

    def times(self, weight: float) -> "Pull":
        """The gradient of `weight` times the loss."""
        return Pull(self.own_BSS * weight, self.other_BST * weight)

    def spread(self, clouds: PointClouds, left_BSG: Tensor, right_BTG: Tensor, upstream_B: Tensor) -> Tensor:
        """The gradient `[B,S,G]`, times each set's upstream gradient."""
        dtype, factor_B11 = left_BSG.dtype, upstream_B.double()[:, None, None]
        own_BSS, other_BST = self.own_BSS * factor_B11, self.other_BST * factor_B11
        left_origin_BG, right_origin_BG = clouds.left_origin_BG, clouds.right_origin_BG
        if left_origin_BG is None or right_origin_BG is None:
            return torch.bmm(own_BSS.to(dtype), left_BSG).baddbmm_(other_BST.to(dtype), right_BTG)
        gradient_BSG = torch.bmm(own_BSS.to(dtype), left_BSG - left_origin_BG[:, None])
        gradient_BSG.baddbmm_(other_BST.to(dtype), right_BTG - right_origin_BG[:, None])
        # The rows' sums give what moving the two origins apart took away.
        apart_B1G = (left_origin_BG - right_origin_BG)[:, None]
        return gradient_BSG.baddbmm_(own_BSS.sum(dim=2, keepdim=True).to(dtype), apart_B1G)
