"""An adapter file to any small checkpoint."""

import dataclasses
from pathlib import Path

import torch

from steval.checkpoints.adapters.adapter_file import write_adapter
from steval.checkpoints.store import load_checkpoint
from steval.model.lora import LoraPair, fresh_pairs, merged
from steval.model.lora_settings import LoraSettings


def write_adapter_to(base: Path, path: Path, *, seed: int, **changes) -> Path:
    """An adapter to the checkpoint `base`: matrices of `seed` beside all that can have some, and one whole tensor of its own."""
    checkpoint = load_checkpoint(base)
    settings = LoraSettings.parse({"rank": 2, "alpha": 6, "targets": "all"})
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(pair.a_RI, torch.rand(pair.b_OR.shape, generator=generator) - 0.5)
        for name, pair in fresh_pairs(checkpoint.network(), settings, generator).items()
    }
    weights = merged(checkpoint.weights, pairs, settings.scale)
    weights["project_out.0.bias"] = weights["project_out.0.bias"] + 0.5
    adapted = dataclasses.replace(checkpoint, weights=weights, manifest=checkpoint.manifest.model_copy(update=changes))
    write_adapter(path, adapted, pairs, settings, base.name, checkpoint.manifest.tensors)
    return path
