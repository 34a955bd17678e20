"""Heads that read a cell embedding off the backbone while it trains; no checkpoint has them.

The mean over a set's cells of the backbone's output, h, meets the mean embedding e of the measured cells of the set (standardised
over training cells):

    distil    = mean over dimensions of (W h + b − e)²                          (0 is best; 1 is as good as no head at all)
    contrast  = ½ (CE(Z, i) + CE(Zᵀ, i)),  Z_ij = cos(U h_i, V e_j) / temperature   (InfoNCE, arXiv:1807.03748)

the cross-entropy of naming the set's own embedding among those of the batch, and the other way round (from 0, best, to about the
logarithm of the number of sets). Sets of the same perturbation are no counter-examples to each other.

Shape letters: B sets, S cells, C hidden size, A dimensions of the embedding, E of the space where both are compared, P
perturbation features.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.groups import AUXILIARY_PREFIX
from steval.model.loss_settings import AUXILIARY_KINDS, AuxiliaryKind

COMPARED = 64
"""Dimensions E."""
TEMPERATURE = 0.1


class AuxiliaryHeads(nn.Module):
    """The heads of `kinds` for a network of hidden size `hidden_dim` and an embedding of `width` dimensions."""

    def __init__(self, kinds: Collection[AuxiliaryKind], hidden_dim: int, width: int):
        super().__init__()
        self.kinds = tuple(kind for kind in AUXILIARY_KINDS if kind in kinds)
        self.distil = nn.Linear(hidden_dim, width) if "distil" in self.kinds else None
        self.contrast = nn.Linear(hidden_dim, COMPARED) if "contrast" in self.kinds else None
        self.contrast_embedding = nn.Linear(width, COMPARED) if "contrast" in self.kinds else None

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw every parameter anew, uniform within ±1/√inputs."""
        for module in self.children():
            assert isinstance(module, nn.Linear)
            for parameter in module.parameters():
                bound = module.in_features**-0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(
        self, hidden_BSC: Tensor, padding_BS: Tensor | None, embedding_BA: Tensor, pert_BP: Tensor
    ) -> dict[AuxiliaryKind, Tensor]:
        """The loss of each kind, float32, mean over the sets; rows where `padding_BS` is True count nothing."""
        pooled_BC = _pooled(hidden_BSC, padding_BS)
        losses: dict[AuxiliaryKind, Tensor] = {}
        if self.distil is not None:
            losses["distil"] = F.mse_loss(self.distil(pooled_BC).float(), embedding_BA)
        if self.contrast is not None and self.contrast_embedding is not None:
            ours_BE = F.normalize(self.contrast(pooled_BC).float(), dim=-1)
            theirs_BE = F.normalize(self.contrast_embedding(embedding_BA).float(), dim=-1)
            losses["contrast"] = _info_nce(ours_BE @ theirs_BE.T / TEMPERATURE, pert_BP)
        return losses


def without_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `state` as a checkpoint has them."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY_PREFIX)}


def _pooled(hidden_BSC: Tensor, padding_BS: Tensor | None) -> Tensor:
    """Mean over the cells that are there, float32."""
    if padding_BS is None:
        return hidden_BSC.float().mean(dim=1)
    there_BS1 = (~padding_BS).float()[..., None]
    return (hidden_BSC.float() * there_BS1).sum(dim=1) / there_BS1.sum(dim=1).clamp(min=1)


def _info_nce(similarity_BB: Tensor, pert_BP: Tensor) -> Tensor:
    num_sets = similarity_BB.shape[0]
    own_B = torch.arange(num_sets, device=similarity_BB.device)
    alike_BB = (pert_BP[:, None] == pert_BP[None]).all(dim=-1) & (own_B[:, None] != own_B[None])
    logits_BB = similarity_BB.masked_fill(alike_BB, float("-inf"))
    return 0.5 * (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B))
