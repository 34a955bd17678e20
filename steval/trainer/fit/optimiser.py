"""AdamW over parameter groups: one group for each (part of the network, rate, decay); frozen parameters are in none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steval.errors import ConfigError
from steval.model.groups import AUXILIARY_PREFIX, block_index, parameter_group
from steval.model.lora_settings import is_adapter
from steval.model.network import StateTransition
from steval.trainer.config import OptimiserSettings
from steval.trainer.fit.schedules import rate_factor
from steval.trainer.fit.sharding import sharded_state
from steval.trainer.settings.phases import PhaseSettings
from steval.wording import counted


@dataclass(frozen=True)
class ParameterSet:
    """Parameters that share a part, a peak rate and a decay."""

    label: str
    """`encoders`, `outputs`, `adapters`, `auxiliary`, `final_norm` or `block_07`; parameters without decay share
    their part's label."""
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
        label = "adapters" if is_adapter(name) else label
        label = "auxiliary" if name.startswith(AUXILIARY_PREFIX) else label
        decay = weight_decay if _is_matrix(name, parameter) and id(parameter) not in embeddings else 0.0
        grouped.setdefault((label, phase.rates.of(name, group, num_layers), decay), []).append((name, parameter))
    if not grouped:
        raise ConfigError(
            f"phase {phase.name!r} trains {', '.join(phase.trains)}, but the network has no parameter there; with "
            f"{counted(num_layers, 'block')} and top_blocks {phase.top_blocks}, add another group to `trains`"
        )
    return [
        ParameterSet(label, rate, decay, tuple(n for n, _ in items), sum(p.numel() for _, p in items))
        for (label, rate, decay), items in grouped.items()
    ]


def build_optimiser(
    network: StateTransition,
    sets: Sequence[ParameterSet],
    settings: OptimiserSettings,
    device: torch.device,
    *,
    recorded: bool = False,
) -> torch.optim.AdamW:
    """A fresh AdamW; each group keeps its `label` and `peak` rate beside torch's own keys. `recorded`: its steps will be
    replayed, so that rates are tensors."""
    on_gpu = device.type == "cuda"
    dtype = torch.float32 if on_gpu else torch.float64  # what the fused kernels read
    parameters = dict(network.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "lr": torch.tensor(group.rate, dtype=dtype, device=device) if recorded else group.rate,
            "weight_decay": group.weight_decay,
            "label": group.label,
            "peak": group.rate,
        }
        for group in sets
    ]
    fused = on_gpu or device.type == "cpu"
    return torch.optim.AdamW(
        groups, betas=settings.betas, eps=settings.eps, fused=fused, capturable=recorded and on_gpu
    )


_OF_THE_DEVICE = ("lr", "fused", "capturable")
"""Keys of a group that say how it is computed, not what; `lr` is set before every step."""


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's `state_dict`, with rates as plain numbers."""
    state = optimiser.state_dict()
    groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take up a saved state, which another kind of device may have written."""
    own = [{key: group[key] for key in _OF_THE_DEVICE} for group in optimiser.param_groups]
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    optimiser.load_state_dict(sharded_state(state, parameters))
    for group, kept in zip(optimiser.param_groups, own, strict=True):
        group.update(kept)


def set_rates(optimiser: torch.optim.Optimizer, phase: PhaseSettings, step: int) -> None:
    """Set every group's rate for optimiser step `step` of `phase`."""
    factor = rate_factor(phase, step)
    for group in optimiser.param_groups:
        rate = group["peak"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rates_at(optimiser: torch.optim.Optimizer, phase: PhaseSettings, step: int) -> dict[str, float]:
    """Rate by label of optimiser step `step`; waits for no device."""
    factor = rate_factor(phase, step)
    return {group["label"]: group["peak"] * factor for group in optimiser.param_groups}


def scale_to(gradients: Sequence[Tensor], total: Tensor, clip: float) -> None:
    """Scale gradients of joint norm `total` down to the norm `clip`, where it is larger; a device is not waited for."""
    if total.device.type != "cpu":
        torch._foreach_mul_(list(gradients), (clip / (total + 1e-6)).clamp(max=1.0))
    elif float(total) > clip:
        torch._foreach_mul_(list(gradients), clip / (float(total) + 1e-6))


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Weights of linear maps: two axes, and no token (`[1,1,C]`)."""
    return parameter.dim() == 2 and name.endswith("weight")
