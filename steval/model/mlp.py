"""Encoders and output projection: `Linear → activation → Dropout`, repeated, the last layer `Linear`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.config import Activation, ModelConfig

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
}


class Mlp(nn.Sequential):
    """An MLP of `num_layers` linear layers; parameters are named `0.weight`, `3.weight`, ... as upstream."""

    def __init__(self, config: ModelConfig, input_dim: int, output_dim: int, num_layers: int):
        layers: list[nn.Module] = []
        dim = input_dim
        for _ in range(num_layers - 1):
            layers += [nn.Linear(dim, config.hidden_dim), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
            dim = config.hidden_dim
        super().__init__(*layers, nn.Linear(dim, output_dim))

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        return _linear(self[-1])

    def before_last(self, features: Tensor) -> Tensor:
        """The input of the last layer."""
        for layer in list(self)[:-1]:
            features = layer(features)
        return features


ALIGNED = 8
"""Columns in half precision that a GPU's fast products take at once: 16 bytes."""


class AlignedLinear(nn.Linear):
    """A linear layer whose odd widths (18,080 // 8 = 2,260) a GPU multiplies as fast as even ones, in half precision:
    zeros fill them up for the product alone, and change nothing. Under `torch.compile` that is the compiler's work."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` → `[..., out_features]`."""
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else input.dtype
        is_half = input.is_cuda and dtype in (torch.bfloat16, torch.float16)
        if not is_half or torch.compiler.is_compiling():
            return super().forward(input)
        return self.filled_up(input, dtype)

    def filled_up(self, input: Tensor, dtype: torch.dtype) -> Tensor:
        """The same in `dtype`, by a product of multiples of eight."""
        columns, rows = -self.in_features % ALIGNED, -self.out_features % ALIGNED
        if not columns and not rows:
            return super().forward(input)
        weight = F.pad(self.weight.to(dtype), (0, columns, 0, rows))
        bias = F.pad(self.bias.to(dtype), (0, rows))
        return F.linear(F.pad(input.to(dtype), (0, columns)), weight, bias)[..., : self.out_features]


class DownThenUp(nn.Sequential):
    """arc-state's `final_down_then_up`: D → D//8 → D with a GELU, whatever the network's activation is."""

    def __init__(self, dim: int):
        super().__init__(AlignedLinear(dim, dim // 8), nn.GELU(), AlignedLinear(dim // 8, dim))

    @property
    def down(self) -> nn.Linear:
        """D → D//8."""
        return _linear(self[0])

    def from_down(self, features: Tensor) -> Tensor:
        """The output, from the output of `down`."""
        return self[2](self[1](features))


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer
