"""Activation checkpointing (arXiv:1604.06174): each backbone block is computed again in the backward pass."""

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from steval.model.llama import Llama
from steval.model.network import StateTransition


def checkpoint_activations(network: StateTransition) -> None:
    """Let every backbone block keep its input alone; results and gradients stay the same."""
    for block in _blocks(network):
        _wrap(block)


def _blocks(network: StateTransition) -> list[nn.Module]:
    backbone = network.transformer_backbone
    return list(backbone.layers if isinstance(backbone, Llama) else backbone.h)


def _wrap(block: nn.Module) -> None:
    compute = block.forward

    def forward(*arguments: Any) -> Any:
        if not block.training:
            return compute(*arguments)
        return checkpoint(compute, *arguments, use_reentrant=False)

    block.forward = forward
