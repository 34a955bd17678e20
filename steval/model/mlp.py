"""Encoders and output projection: `Linear → activation → Dropout`, repeated, the last layer `Linear`."""

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


class DownThenUp(nn.Sequential):
    """arc-state's `final_down_then_up`: D → D//8 → D with a GELU, whatever the network's activation is."""

    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim, dim // 8), nn.GELU(), nn.Linear(dim // 8, dim))

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
