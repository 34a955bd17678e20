"""Who attends to whom: the three regimes of one checkpoint, `mask_attn`, and padding, as one plan for all blocks.

Shape letters: B sets, T tokens of a set (cells and extra tokens), H heads, K key/value heads, D head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from steval.model.config import Attention


@dataclass(frozen=True)
class AttentionPlan:
    """What every block of a backbone needs to know about the tokens it sees."""

    allowed_BTT: Tensor | None
    """bool `[B or 1, 1, T, T]`, True where the query (third axis) may attend to the key; None means no mask."""
    is_causal: bool
    """Causal without any other mask (then `allowed_BTT` is None), which has a kernel of its own."""
    positions_BT: Tensor | None
    """int64 `[B or 1, T]` positions for the rotary embedding; None where the regime has none."""


def plan_attention(
    regime: Attention,
    num_tokens: int,
    *,
    own_token_only: bool = False,
    padding_BT: Tensor | None = None,
    device: torch.device | None = None,
) -> AttentionPlan:
    """The plan of one batch of sets.

    `padding_BT` is True where a token is padding: no token attends to it, and positions are counted without it, so that
    a padded set gives what it gives alone. A padding token attends to itself only, which keeps its row finite.
    """
    causal = regime != "bidirectional"
    own_BTT = torch.eye(num_tokens, dtype=torch.bool, device=device)[None, None]
    positions_BT = None
    if regime == "causal-rope":
        positions_BT = torch.arange(num_tokens, device=device)[None]
        if padding_BT is not None:
            positions_BT = ((~padding_BT).cumsum(dim=1) - 1).clamp_min(0)
    if own_token_only:
        return AttentionPlan(own_BTT, is_causal=False, positions_BT=positions_BT)
    if padding_BT is None:
        return AttentionPlan(None, is_causal=causal, positions_BT=positions_BT)
    allowed_BTT = ~padding_BT[:, None, None, :]
    if causal:
        allowed_BTT = allowed_BTT & torch.ones_like(own_BTT).tril()
    return AttentionPlan(allowed_BTT | own_BTT, is_causal=False, positions_BT=positions_BT)


def attend(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, plan: AttentionPlan) -> Tensor:
    """Softmax attention `[B,T,H·D]`; with fewer key/value heads each serves H/K consecutive query heads."""
    repeats = query_BHTD.shape[1] // key_BKTD.shape[1]
    if repeats > 1:
        key_BKTD = key_BKTD.repeat_interleave(repeats, dim=1)
        value_BKTD = value_BKTD.repeat_interleave(repeats, dim=1)
    mixed_BHTD = F.scaled_dot_product_attention(
        query_BHTD, key_BKTD, value_BKTD, attn_mask=plan.allowed_BTT, is_causal=plan.is_causal
    )
    return mixed_BHTD.transpose(1, 2).flatten(2)


def split_heads(features_BTF: Tensor, head_dim: int) -> Tensor:
    """`[B,T,heads·D]` → `[B,heads,T,D]`."""
    return features_BTF.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rotary_tables(positions_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B or 1, 1, T, D]` of the rotary embedding (arXiv:2104.09864, halves paired as in Llama)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles_BTD = positions_BT[..., None].float() * theta**-exponents
    angles_BTD = torch.cat((angles_BTD, angles_BTD), dim=-1)[:, None]
    return angles_BTD.cos().to(dtype), angles_BTD.sin().to(dtype)


def rotate(features_BHTD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """`features` turned by the angles of their positions."""
    cosine, sine = tables
    first, second = features_BHTD.chunk(2, dim=-1)
    return features_BHTD * cosine + torch.cat((-second, first), dim=-1) * sine
