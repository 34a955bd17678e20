"""AdamW over parameter groups: one group for each (part of the network, rate, decay); frozen parameters are in none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steval.errors import ConfigError
from steval.model.groups import block_index, parameter_group
from steval.model.network import StateTransition
from steval.trainer.config import OptimiserSettings
from steval.trainer.fit.schedules import rate_factor
from steval.trainer.settings.phases import PhaseSettings


@dataclass(frozen=True)
class ParameterSet:
    """Parameters that share a part, a peak rate and a decay."""

    label: str
    """`encoders`, `outputs`, `final_norm` or `block_07`; parameters without decay share their part's label."""
    rate: float
    weight_decay: float
    names: tuple[str, ...]
    num_parameters: int


def freeze(network: StateTransition, phase: PhaseSettings, idle: Iterable[str] = ()) -> None:
    """Let exactly the parameters of `phase.trains` require gradients, without those whose name starts with one of `idle`."""
    num_layers = network.config.backbone.num_layers
    unused = tuple(idle)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains_parameter(name, num_layers) and not name.startswith(unused))
        parameter.grad = None


def parameter_sets(network: StateTransition, phase: PhaseSettings, weight_decay: float) -> list[ParameterSet]:
    """The groups of the trainable parameters in network order; raises `ConfigError` where nothing trains."""
    num_layers = network.config.backbone.num_layers
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    grouped: dict[tuple[str, float, float], list[tuple[str, Tensor]]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group = parameter_group(name, num_layers, phase.top_blocks)
        block = block_index(name)
        label = group if group in ("encoders", "outputs") else "final_norm" if block is None else f"block_{block:02d}"
        decay = weight_decay if _is_matrix(name, parameter) and id(parameter) not in embeddings else 0.0
        grouped.setdefault((label, phase.rates.of(name, group, num_layers), decay), []).append((name, parameter))
    if not grouped:
        raise ConfigError(
            f"phase {phase.name!r} trains {', '.join(phase.trains)}, but the network has no parameter there; with "
            f"{num_layers} blocks and top_blocks {phase.top_blocks}, add another group to `trains`"
        )
    return [
        ParameterSet(label, rate, decay, tuple(n for n, _ in items), sum(p.numel() for _, p in items))
        for (label, rate, decay), items in grouped.items()
    ]


def build_optimiser(
    network: StateTransition, sets: Sequence[ParameterSet], settings: OptimiserSettings, device: torch.device
) -> torch.optim.AdamW:
    """A fresh AdamW; each group keeps its `label` and `peak` rate beside torch's own keys."""
    parameters = dict(network.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "lr": group.rate,
            "weight_decay": group.weight_decay,
            "label": group.label,
            "peak": group.rate,
        }
        for group in sets
    ]
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=device.type in ("cpu", "cuda"))


def set_rates(optimiser: torch.optim.Optimizer, phase: PhaseSettings, step: int) -> None:
    """Set every group's rate for optimiser step `step` of `phase`."""
    factor = rate_factor(phase, step)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def current_rates(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Rate by label."""
    return {group["label"]: float(group["lr"]) for group in optimiser.param_groups}


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Weights of linear maps: two axes, and no token (`[1,1,C]`)."""
    return parameter.dim() == 2 and name.endswith("weight")
