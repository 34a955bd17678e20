"""LoRA adapters of a run: put on as a phase begins, added to the matrices at its end, and the file of the best ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from steval.checkpoints.adapters.adapter_file import write_adapter
from steval.checkpoints.manifest import FEATURES
from steval.checkpoints.store import load_checkpoint, tensor_digests
from steval.errors import ConfigError
from steval.model.lora import Attached, LoraPair, attach, fresh_pairs, split_pairs
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.state import Progress
from steval.trainer.settings.phases import PhaseSettings
from steval.trainer.sources import Base

_ADAPTERS = 3
"""Stream of random numbers under the run's seed."""


@dataclass(frozen=True)
class BaseTensors:
    """What adapters are bound to: the base's name, and the digest of each of its tensors. Empty where nothing asks for it."""

    name: str = ""
    digests: Mapping[str, str] | None = None

    @classmethod
    def of(cls, base: Base | None, config: FinetuneConfig) -> "BaseTensors":
        """Of the checkpoint that the run starts from, where a phase of it has adapters."""
        if base is None or not any(phase.lora for phase in config.phases):
            return cls()
        if base.manifest is not None:
            return cls(base.source.name, base.manifest.tensors)
        features = base.source.vocabulary.features
        named = dict(base.source.weights) | ({} if features is None else {FEATURES: features})
        return cls(base.source.name, tensor_digests(named))

    def unchanged(self, weights: Mapping[str, Tensor]) -> frozenset[str]:
        """Names of the weights that are still the base's."""
        if self.digests is None:
            return frozenset()
        found = tensor_digests(
            {name: tensor.detach().cpu() for name, tensor in weights.items() if name in self.digests}
        )
        return frozenset(name for name, digest in found.items() if self.digests[name] == digest)


def put_on(
    network: StateTransition, phase: PhaseSettings, seed: int, number: int, resumed: Mapping[str, LoraPair]
) -> Attached | None:
    """The adapters of phase `number` on `network`, fresh or as they were; None where the phase has none."""
    if phase.lora is None:
        return None
    generator = torch.Generator().manual_seed((seed * 1000 + _ADAPTERS) * 1000 + number)
    pairs = resumed or fresh_pairs(network, phase.lora, generator)
    if not pairs:
        raise ConfigError(f"phase {phase.name!r} has lora, but the network has no matrix that its targets mean")
    return attach(network, pairs, phase.lora.scale, phase.lora.dropout)


def keep_adapter(directory: RunDirectory, progress: Progress, config: FinetuneConfig, base: BaseTensors) -> None:
    """Write the adapter file of the best checkpoint; where that has no adapters, there is none."""
    settings = next((phase.lora for phase in config.phases if phase.name == progress.best.get("phase")), None)
    if not progress.best_adapter or settings is None or base.digests is None:
        directory.adapter_path.unlink(missing_ok=True)
        return
    pairs = split_pairs(progress.best_adapter)[1]
    write_adapter(
        directory.adapter_path, load_checkpoint(directory.best_path), pairs, settings, base.name, base.digests
    )
