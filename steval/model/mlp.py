"""Encoders and output projection: `Linear → activation → Dropout`, repeated, the last layer `Linear`."""

from torch import nn

from steval.model.config import Activation, ModelConfig

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
}


def build_mlp(config: ModelConfig, input_dim: int, output_dim: int, num_layers: int) -> nn.Sequential:
    """An MLP of `num_layers` linear layers; parameters are named `0.weight`, `3.weight`, ... as upstream."""
    layers: list[nn.Module] = []
    dim = input_dim
    for _ in range(num_layers - 1):
        layers += [nn.Linear(dim, config.hidden_dim), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        dim = config.hidden_dim
    return nn.Sequential(*layers, nn.Linear(dim, output_dim))


def build_bottleneck(dim: int) -> nn.Sequential:
    """arc-state's `final_down_then_up`: D → D//8 → D with a GELU, whatever the network's activation is."""
    return nn.Sequential(nn.Linear(dim, dim // 8), nn.GELU(), nn.Linear(dim // 8, dim))
