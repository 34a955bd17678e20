"""What bf16-mixed needs beside autocast: norms compute in the type of their weights, float32."""

from typing import Any

from torch import Tensor, nn

from steval.model.network import StateTransition


def keep_norms_in_float32(network: StateTransition) -> None:
    """Let every norm take its input in its weights' type: sums of squares need the digits, and the fused kernels one type."""
    for module in network.modules():
        if isinstance(module, nn.RMSNorm | nn.LayerNorm):
            module.register_forward_pre_hook(_as_weights)


def _as_weights(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (inputs[0].to(weight.dtype), *inputs[1:])
