"""Low-rank adapters (LoRA, arXiv:2106.09685): beside a frozen matrix W of a linear map the product of two small ones,

    y = W x + scale · B (A x),    scale = alpha / rank,    A [r, in] drawn at random, B [out, r] from zero,

as a part of the network while it trains, and added to W where it is merged. GPT-2 keeps W as `[in, out]`; its adapters are kept
as everyone's. Shape letters: R rank, I inputs, O outputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steval.model.lora_settings import A_SUFFIX, B_SUFFIX, LoraSettings, is_adapter, is_transposed
from steval.model.network import StateTransition

WEIGHT_SUFFIX = ".weight"


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one adapter, `a_RI` and `b_OR`."""

    a_RI: Tensor
    b_OR: Tensor

    def delta(self, scale: float, *, transposed: bool) -> Tensor:
        """`scale · B A` in float64, as the matrix that it is added to is kept."""
        product_OI = scale * (self.b_OR.double() @ self.a_RI.double())
        return product_OI.T if transposed else product_OI

    def scaled(self, scale: float) -> "LoraPair":
        """The pair whose product is `scale` times this one's."""
        return LoraPair(self.a_RI, scale * self.b_OR)


def merged(weights: Mapping[str, Tensor], pairs: Mapping[str, LoraPair], scale: float) -> dict[str, Tensor]:
    """`weights` with the adapters in `pairs` (by the weight's name) added; the others are shared, none is changed."""
    return {
        name: (
            (tensor.double() + pairs[name].delta(scale, transposed=is_transposed(name)).to(tensor.device)).to(
                tensor.dtype
            )
            if name in pairs
            else tensor
        )
        for name, tensor in weights.items()
    }


def split_pairs(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, LoraPair]]:
    """The weights of a state dict and its adapters, by the name of the weight that each belongs to."""
    weights = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    modules = [name.removesuffix(A_SUFFIX) for name in state if name.endswith(A_SUFFIX)]
    pairs = {
        f"{module}{WEIGHT_SUFFIX}": LoraPair(state[module + A_SUFFIX], state[module + B_SUFFIX])
        for module in modules
        if module + B_SUFFIX in state
    }
    return weights, pairs


def named(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    """The matrices under the names that they have in a state dict; `split_pairs` is the way back."""
    found = {}
    for weight, pair in pairs.items():
        module = weight.removesuffix(WEIGHT_SUFFIX)
        found |= {module + A_SUFFIX: pair.a_RI, module + B_SUFFIX: pair.b_OR}
    return found


class _Adapter:
    """What is hooked to a linear map: adds `scale · B (A x)` to its output. The two matrices are the map's own parameters."""

    def __init__(self, scale: float, dropout: float):
        self.scale = scale
        self.dropout = dropout

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        features = F.dropout(inputs[0], self.dropout, training=linear.training) if self.dropout else inputs[0]
        return output + self.scale * F.linear(F.linear(features, linear.lora_a), linear.lora_b)  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True)
class Attached:
    """The adapters of a network, hooked to its linear maps until `remove`; their parameters are in its `state_dict`."""

    network: StateTransition
    weights: tuple[str, ...]
    handles: tuple[RemovableHandle, ...]

    def matrices(self) -> dict[str, Tensor]:
        """The weights beside which they are."""
        return {name: self.network.get_parameter(name).detach() for name in self.weights}

    @torch.no_grad()
    def merge(self, scale: float) -> None:
        """Add them to the weights and take them off."""
        weights, pairs = split_pairs(self.network.state_dict())
        added = merged({name: weights[name] for name in pairs}, pairs, scale)
        self.remove()
        for name, tensor in added.items():
            self.network.get_parameter(name).copy_(tensor)

    def remove(self) -> None:
        """Take them off, with their parameters; the weights beside them stay as they are."""
        for handle, name in zip(self.handles, self.weights, strict=True):
            handle.remove()
            module = self.network.get_submodule(name.removesuffix(WEIGHT_SUFFIX))
            del module.lora_a, module.lora_b


def attach(network: StateTransition, pairs: Mapping[str, LoraPair], scale: float, dropout: float = 0.0) -> Attached:
    """Put `pairs` (by the weight's name) beside the linear maps of `network`, on the device and in the dtype of each."""
    handles = []
    for name, pair in pairs.items():
        weight = network.get_parameter(name)
        module = network.get_submodule(name.removesuffix(WEIGHT_SUFFIX))
        for label, matrix in (("lora_a", pair.a_RI), ("lora_b", pair.b_OR)):
            module.register_parameter(label, nn.Parameter(matrix.detach().to(weight.device, weight.dtype)))
        handles.append(module.register_forward_hook(_Adapter(scale, dropout)))
    return Attached(network, tuple(pairs), tuple(handles))


def adapted_weights(network: StateTransition, settings: LoraSettings) -> list[str]:
    """Names of the weights that `settings` puts adapters beside, in network order."""
    return [name for name, tensor in network.named_parameters() if tensor.dim() == 2 and settings.adapts(name)]


def num_adapted(network: StateTransition, settings: LoraSettings) -> int:
    """Parameters of the adapters."""
    return sum(settings.rank * sum(network.get_parameter(name).shape) for name in adapted_weights(network, settings))


def fresh_pairs(network: StateTransition, settings: LoraSettings, generator: torch.Generator) -> dict[str, LoraPair]:
    """A uniform within ±1/√inputs, B zero: the network computes at first what it did."""
    pairs = {}
    for name in adapted_weights(network, settings):
        shape = network.get_parameter(name).shape
        num_outputs, num_inputs = shape[::-1] if is_transposed(name) else shape
        drawn_RI = 2 * torch.rand(settings.rank, num_inputs, generator=generator) - 1
        pairs[name] = LoraPair(drawn_RI / math.sqrt(num_inputs), torch.zeros(num_outputs, settings.rank))
    return pairs
