"""Two batched point clouds and their squared distances, accurate in float32 at 18,080 dimensions.

Distances come from matrix products: |x-y|² = |x|² + |y|² - 2 x·y. Each cloud is centred on its own mean first, so that
what cancels is of the size of the cloud and not of its distance from the origin; pairs so near that rounding would still
show are measured again from their difference. A card that multiplies in float64 as fast as in float32 does that instead:
nothing there depends on the values, so that the host never waits. Shape letters: B sets, S left points, T right points, G
dimensions, K pieces of them, D dimensions of a piece.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from steval.model.hardware import has_fast_double

_SMALLEST = 1e-10
"""Rounding below this (a hundredth of the energy distance's floor of 1e-8) shows nowhere."""
_SHOWS = 1e4
"""Squared distances within this multiple of their rounding error are measured again."""
_CHUNK_ELEMENTS = 1 << 24
_MOST_PIECES = 16
"""Products of few rows and many dimensions are taken in pieces, which occupy more of a card."""


@dataclass(frozen=True)
class PointClouds:
    """Weights, means and squared distances of two clouds per set; all float64 but the means. Padding weighs 0."""

    left_weights_BS: Tensor
    right_weights_BT: Tensor
    """Sum 1 in each set."""
    left_left_BSS: Tensor
    """Squared distances; zero on the diagonal."""
    right_right_BTT: Tensor
    left_right_BST: Tensor
    left_origin_BG: Tensor | None
    """Where to put the origin for sums over the left points: the mean in sets far from zero, else zero. None where
    no set is far."""
    right_origin_BG: Tensor | None

    @property
    def swapped(self) -> "PointClouds":
        """The same pair seen from the right cloud."""
        return PointClouds(
            self.right_weights_BT,
            self.left_weights_BS,
            self.right_right_BTT,
            self.left_left_BSS,
            self.left_right_BST.mT,
            self.right_origin_BG,
            self.left_origin_BG,
        )


def measure_clouds(
    left_BSG: Tensor, right_BTG: Tensor, left_padding_BS: Tensor | None, right_padding_BT: Tensor | None
) -> PointClouds:
    """Measure all distances of two clouds of equal dtype (float32 or float64); padding rows must be zero."""
    if left_BSG.dtype == torch.float32 and has_fast_double(left_BSG.device):
        return _measure_in_double(left_BSG, right_BTG, left_padding_BS, right_padding_BT)
    left_weights_BS = _weights(left_BSG, left_padding_BS)
    right_weights_BT = _weights(right_BTG, right_padding_BT)
    left_BSG, left_mean_BG = _centre(left_BSG, left_weights_BS)
    right_BTG, right_mean_BG = _centre(right_BTG, right_weights_BT)
    left_left_BSS, left_norm_BS = _within(left_BSG)
    right_right_BTT, right_norm_BT = _within(right_BTG)
    # Near zero, moving the origin would only round what is exact (zeros, cells equal in both clouds).
    far_B1 = _is_far(left_mean_BG, left_norm_BS, left_weights_BS) | _is_far(
        right_mean_BG, right_norm_BT, right_weights_BT
    )
    is_any_far = bool(far_B1.any())
    return PointClouds(
        left_weights_BS,
        right_weights_BT,
        left_left_BSS,
        right_right_BTT,
        _between(left_BSG, right_BTG, left_norm_BS, right_norm_BT, left_mean_BG - right_mean_BG),
        left_mean_BG * far_B1 if is_any_far else None,
        right_mean_BG * far_B1 if is_any_far else None,
    )


def _measure_in_double(
    left_BSG: Tensor, right_BTG: Tensor, left_padding_BS: Tensor | None, right_padding_BT: Tensor | None
) -> PointClouds:
    """The same of float32 points by float64 products around the right cloud's mean: rounding is under 1e-15 of the squared
    norms, and nothing needs to be measured again."""
    left_weights_BS = _weights(left_BSG, left_padding_BS)
    right_weights_BT = _weights(right_BTG, right_padding_BT)
    left_mean_BG = (left_weights_BS.float()[:, None] @ left_BSG)[:, 0]
    right_mean_BG = (right_weights_BT.float()[:, None] @ right_BTG)[:, 0]
    left_BKSD, right_BKTD = _pieces(left_BSG, right_mean_BG), _pieces(right_BTG, right_mean_BG)
    left_left_BSS, left_norm_BS = _within_pieces(left_BKSD)
    right_right_BTT, right_norm_BT = _within_pieces(right_BKTD)
    left_right_BST = left_norm_BS[:, :, None] + right_norm_BT[:, None, :] - 2 * _multiply(left_BKSD, right_BKTD)
    apart_B = (left_mean_BG.double() - right_mean_BG.double()).square().sum(dim=1)
    left_spread_B = ((left_norm_BS * left_weights_BS).sum(dim=1) - apart_B).clamp_min(0)
    right_spread_B = (right_norm_BT * right_weights_BT).sum(dim=1)
    far_B1 = _lies_far(left_mean_BG, left_spread_B) | _lies_far(right_mean_BG, right_spread_B)
    return PointClouds(
        left_weights_BS, right_weights_BT, left_left_BSS, right_right_BTT, left_right_BST.clamp_min_(0),
        left_mean_BG * far_B1, right_mean_BG * far_B1,
    )  # fmt: skip


def _pieces(points_BSG: Tensor, origin_BG: Tensor) -> Tensor:
    """Points around an origin in float64 `[B, K, S, D]`, G = K·D, in one pass."""
    count = next(k for k in range(_MOST_PIECES, 0, -1) if points_BSG.shape[2] % k == 0)
    view_BKSD = points_BSG.unflatten(2, (count, -1)).transpose(1, 2)
    pieces_BKSD = points_BSG.new_empty(view_BKSD.shape, dtype=torch.float64)
    origin_BK1D = origin_BG.double().unflatten(1, (count, -1))[:, :, None]
    return torch.sub(view_BKSD, origin_BK1D, out=pieces_BKSD)


def _multiply(left_BKSD: Tensor, right_BKTD: Tensor) -> Tensor:
    """Scalar products `[B, S, T]`."""
    products = torch.bmm(left_BKSD.flatten(0, 1), right_BKTD.flatten(0, 1).mT)
    return products.unflatten(0, left_BKSD.shape[:2]).sum(dim=1)


def _within_pieces(points_BKSD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances within a cloud, and squared norms."""
    products_BSS = _multiply(points_BKSD, points_BKSD)
    norm_BS = products_BSS.diagonal(dim1=1, dim2=2)
    squared_BSS = (norm_BS[:, :, None] + norm_BS[:, None, :] - 2 * products_BSS).clamp_min_(0)
    squared_BSS.diagonal(dim1=1, dim2=2).zero_()
    return squared_BSS, norm_BS


def _weights(points_BSG: Tensor, padding_BS: Tensor | None) -> Tensor:
    if padding_BS is None:
        return points_BSG.new_full(points_BSG.shape[:2], 1 / points_BSG.shape[1], dtype=torch.float64)
    kept_BS = (~padding_BS).double()
    return kept_BS / kept_BS.sum(dim=1, keepdim=True)


def _centre(points_BSG: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Points minus their mean (padding rows stay zero), and the mean."""
    mean_B1G = weights_BS.to(points_BSG.dtype)[:, None] @ points_BSG
    centred_BSG = points_BSG - mean_B1G
    padding_BS = weights_BS == 0
    if padding_BS.any():
        centred_BSG.masked_fill_(padding_BS[..., None], 0)
    return centred_BSG, mean_B1G[:, 0]


def _is_far(mean_BG: Tensor, norm_BS: Tensor, weights_BS: Tensor) -> Tensor:
    return _lies_far(mean_BG, (norm_BS * weights_BS).sum(dim=1))


def _lies_far(mean_BG: Tensor, spread_B: Tensor) -> Tensor:
    """Whether each cloud lies further from zero than it is wide `[B, 1]`."""
    return (mean_BG.square().sum(dim=1, dtype=torch.float64) > 16 * spread_B)[:, None]


def _within(points_BSG: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances within a cloud, and squared norms."""
    products_BSS = (points_BSG @ points_BSG.mT).double()
    norm_BS = products_BSS.diagonal(dim1=1, dim2=2)
    scale_BSS = norm_BS[:, :, None] + norm_BS[:, None, :]
    squared_BSS = (scale_BSS - 2 * products_BSS).clamp_min_(0)
    _measure_near_again(squared_BSS, scale_BSS, points_BSG, points_BSG, None)
    squared_BSS.diagonal(dim1=1, dim2=2).zero_()
    return squared_BSS, norm_BS


def _between(
    left_BSG: Tensor, right_BTG: Tensor, left_norm_BS: Tensor, right_norm_BT: Tensor, shift_BG: Tensor
) -> Tensor:
    """|l - r + shift|² = |l|² + |r|² + |shift|² + 2 l·shift - 2 r·shift - 2 l·r."""
    shift_norm_B = shift_BG.square().sum(dim=1, dtype=torch.float64)
    left_shift_BS = (left_BSG @ shift_BG[..., None]).double()[..., 0]
    right_shift_BT = (right_BTG @ shift_BG[..., None]).double()[..., 0]
    scale_BST = left_norm_BS[:, :, None] + right_norm_BT[:, None, :] + shift_norm_B[:, None, None]
    along_BST = left_shift_BS[:, :, None] - right_shift_BT[:, None, :]
    squared_BST = (scale_BST - 2 * (left_BSG @ right_BTG.mT).double() + 2 * along_BST).clamp_min_(0)
    _measure_near_again(squared_BST, scale_BST, left_BSG, right_BTG, shift_BG)
    return squared_BST


def _measure_near_again(
    squared_BST: Tensor, scale_BST: Tensor, left_BSG: Tensor, right_BTG: Tensor, shift_BG: Tensor | None
) -> None:
    """Replace, in place, squared distances that rounding of the products would show in."""
    rounding_BST = scale_BST * (8 * torch.finfo(left_BSG.dtype).eps)
    near_BST = (squared_BST < _SHOWS * rounding_BST) & (rounding_BST > _SMALLEST)
    if shift_BG is None:
        near_BST &= torch.ones_like(near_BST[0]).triu(1)
    pairs = near_BST.nonzero()
    for part in pairs.split(max(_CHUNK_ELEMENTS // left_BSG.shape[2], 1)):
        sets, lefts, rights = part.unbind(1)
        difference = left_BSG[sets, lefts] - right_BTG[sets, rights]
        if shift_BG is not None:
            difference += shift_BG[sets]
        again = difference.square().sum(dim=1, dtype=torch.float64)
        squared_BST[sets, lefts, rights] = again
        if shift_BG is None:
            squared_BST[sets, rights, lefts] = again
