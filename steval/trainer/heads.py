"""Heads on an auxiliary embedding as a part of a run: attached to its network, kept in its state, left out of its checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from steval.data.training.cells import TrainingCells
from steval.model.auxiliary import AuxiliaryHeads
from steval.model.config import ModelConfig
from steval.model.groups import AUXILIARY_PREFIX
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.objective import Auxiliary
from steval.trainer.settings.phases import PhaseSettings

_HEADS = 9
"""Stream of random numbers under the run's seed."""


def initial_heads(config: FinetuneConfig, model: ModelConfig, cells: TrainingCells) -> dict[str, Tensor]:
    """The heads' first weights under their names in the network; empty where the run has none."""
    heads = _heads(config, model, cells)
    if heads is None:
        return {}
    heads.reset(torch.Generator().manual_seed(config.seed * 1000 + _HEADS))
    return {f"{AUXILIARY_PREFIX}{name}": tensor for name, tensor in heads.state_dict().items()}


def attach_heads(network: StateTransition, config: FinetuneConfig, cells: TrainingCells) -> None:
    """Make the run's heads, if it has some, a part of `network`; their weights are still to be loaded."""
    network.auxiliary = _heads(config, network.config, cells)


def with_own_heads(weights: Mapping[str, Tensor], network: StateTransition) -> dict[str, Tensor]:
    """`weights` of a checkpoint with the heads as they are in `network`."""
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(AUXILIARY_PREFIX)}
    return {**own, **weights}


def auxiliary_of(network: StateTransition, config: FinetuneConfig, phase: PhaseSettings) -> Auxiliary | None:
    """What the objective of `phase` does with the heads of `network`."""
    heads = network.auxiliary
    if heads is None:
        return None
    return Auxiliary(heads, {kind: config.auxiliary_weight(kind, phase) for kind in heads.kinds})


def _heads(config: FinetuneConfig, model: ModelConfig, cells: TrainingCells) -> AuxiliaryHeads | None:
    if cells.auxiliary is None or not config.auxiliary_kinds:
        return None
    return AuxiliaryHeads(config.auxiliary_kinds, model.hidden_dim, cells.auxiliary.dimension)
