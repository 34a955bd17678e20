"""Heads beside the main output: the gene decoder (latent → genes) and the confidence token's projection."""

import itertools

import torch
from torch import Tensor, nn

from steval.model.config import GeneDecoderConfig


def _block(input_dim: int, output_dim: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(input_dim, output_dim), nn.LayerNorm(output_dim), nn.GELU(), nn.Dropout(dropout)]


class PlainGeneDecoder(nn.Module):
    """`[Linear, LayerNorm, GELU, Dropout]*, Linear, ReLU`."""

    def __init__(self, config: GeneDecoderConfig):
        super().__init__()
        layers: list[nn.Module] = []
        dim = config.latent_dim
        for hidden_dim in config.hidden_dims:
            layers += _block(dim, hidden_dim, config.dropout)
            dim = hidden_dim
        self.decoder = nn.Sequential(*layers, nn.Linear(dim, config.gene_dim), nn.ReLU())

    def forward(self, latent_BSG: Tensor) -> Tensor:
        """`[B,S,latent_dim]` → genes `[B,S,gene_dim]`, not negative."""
        return self.decoder(latent_BSG)


class ResidualGeneDecoder(nn.Module):
    """The same blocks; every odd one (counted from 0) adds the output of the block before it to its own."""

    def __init__(self, config: GeneDecoderConfig):
        super().__init__()
        dims = (config.latent_dim, *config.hidden_dims)
        self.blocks = nn.ModuleList(
            nn.Sequential(*_block(before, after, config.dropout)) for before, after in itertools.pairwise(dims)
        )
        self.final_layer = nn.Sequential(nn.Linear(dims[-1], config.gene_dim), nn.ReLU())

    def forward(self, latent_BSG: Tensor) -> Tensor:
        """`[B,S,latent_dim]` → genes `[B,S,gene_dim]`, not negative."""
        features = latent_BSG
        for index, block in enumerate(self.blocks):
            features = block(features) + features if index % 2 else block(features)
        return self.final_layer(features)


def build_gene_decoder(config: GeneDecoderConfig) -> PlainGeneDecoder | ResidualGeneDecoder:
    """The decoder form that `config` names."""
    return ResidualGeneDecoder(config) if config.residual else PlainGeneDecoder(config)


class ConfidenceToken(nn.Module):
    """A learned token that ends a set, and the projection that reads from it how large the set's loss will be."""

    def __init__(self, hidden_dim: int, dropout: float):
        super().__init__()
        self.confidence_token = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.confidence_projection = nn.Sequential(
            *_block(hidden_dim, hidden_dim // 2, dropout),
            *_block(hidden_dim // 2, hidden_dim // 4, dropout),
            nn.Linear(hidden_dim // 4, 1),
            nn.ReLU(),
        )

    def forward(self, token_BC: Tensor) -> Tensor:
        """The token after the backbone `[B,C]` → predicted loss `[B]`, not negative."""
        return self.confidence_projection(token_BC).squeeze(-1)
