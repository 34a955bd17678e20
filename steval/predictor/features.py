"""Features of perturbations that the checkpoint was not trained on, from a file (`checkpoints.feature_file`)."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from steval.checkpoints.feature_file import read_features
from steval.checkpoints.manifest import PerturbationEntry
from steval.checkpoints.store import Checkpoint
from steval.errors import ConfigError, DataError
from steval.wording import counted

log = logging.getLogger(__name__)

SAME_FEATURES = 1e-4
"""Largest difference between a known perturbation's features here and in the checkpoint, relative to the largest value."""


def with_features(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with the perturbations of a features file added to its vocabulary, marked untrained.

    Known names keep the checkpoint's features; where the file's differ it describes names in another way, and is refused.
    Raises `ConfigError` for a checkpoint of one-hot features, `DataError` for a file that does not fit.
    """
    if is_one_hot(checkpoint.features):
        raise ConfigError(
            f"{checkpoint.path} tells perturbations apart by one-hot codes, which say nothing of a perturbation outside its "
            "training data; unseen perturbations need a checkpoint trained on features (such as protein embeddings)"
        )
    table = {name: torch.from_numpy(vector) for name, vector in read_features(path).items()}
    _require_width(table, checkpoint.manifest.model.pert_dim, path)
    row = {name: index for index, name in enumerate(checkpoint.manifest.perturbation_names)}
    _require_same(
        {name: table[name] for name in table if name in row and name != checkpoint.manifest.control}, checkpoint
    )
    new = [name for name in table if name not in row]
    log.info("%s: features of %s that the checkpoint does not know", path, counted(len(new), "perturbation"))
    entries = tuple(PerturbationEntry(name=name, trained=False) for name in new)
    manifest = checkpoint.manifest.model_copy(update={"perturbations": checkpoint.manifest.perturbations + entries})
    features = torch.cat([checkpoint.features, *(table[name][None] for name in new)])
    return dataclasses.replace(checkpoint, manifest=manifest, features=features)


def is_one_hot(features: Tensor) -> bool:
    """Whether each row `[P, pert_dim]` is zero but for a single one, at a place of its own."""
    ones = (features == 1).sum(dim=1)
    others = ((features != 0) & (features != 1)).sum()
    places = features.argmax(dim=1)[ones == 1]
    return bool(others == 0 and (ones <= 1).all() and len(places.unique()) == len(places) and len(places) > 1)


def _require_width(table: Mapping[str, Tensor], pert_dim: int, path: Path) -> None:
    wrong = [
        f"{name!r} has {counted(value.numel(), 'number')}"
        for name, value in table.items()
        if value.shape != (pert_dim,)
    ]
    if wrong:
        raise DataError(
            f"{path}: the checkpoint's perturbation features are {counted(pert_dim, 'number')} each", wrong[:20]
        )
    if not table:
        raise DataError(f"{path} holds no features")


def _require_same(table: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    if not table:
        return
    known = checkpoint.feature_rows(list(table))
    difference = (known - torch.stack(list(table.values()))).abs().amax(dim=1)
    limit = SAME_FEATURES * max(1.0, float(known.abs().max()))
    differ = [name for name, value in zip(table, difference, strict=True) if value > limit]
    if differ:
        raise DataError(
            f"the features file describes {counted(len(differ), 'known perturbation')} otherwise than the checkpoint "
            f"({', '.join(differ[:5])}); unseen ones described that way would be misread. Use features from the model that "
            "made the checkpoint's"
        )
