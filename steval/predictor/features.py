"""Features of perturbations that the checkpoint was not trained on, from a file.

`.safetensors`: one tensor `[pert_dim]` for each name. `.csv`, `.tsv`: no header, a name and its `pert_dim` numbers a line.
"""

import csv
import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from steval.checkpoints.manifest import PerturbationEntry
from steval.checkpoints.store import Checkpoint
from steval.data.files import require_file
from steval.errors import ConfigError, DataError

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
    table = read_features(path, checkpoint.manifest.model.pert_dim)
    row = {name: index for index, name in enumerate(checkpoint.manifest.perturbation_names)}
    _require_same(
        {name: table[name] for name in table if name in row and name != checkpoint.manifest.control}, checkpoint
    )
    new = [name for name in table if name not in row]
    log.info("%s: features of %d perturbations that the checkpoint does not know", path, len(new))
    entries = tuple(PerturbationEntry(name=name, trained=False) for name in new)
    manifest = checkpoint.manifest.model_copy(update={"perturbations": checkpoint.manifest.perturbations + entries})
    features = torch.cat([checkpoint.features, *(torch.from_numpy(table[name])[None] for name in new)])
    return dataclasses.replace(checkpoint, manifest=manifest, features=features)


def is_one_hot(features: torch.Tensor) -> bool:
    """Whether each row `[P, pert_dim]` is zero but for a single one, at a place of its own."""
    ones = (features == 1).sum(dim=1)
    others = ((features != 0) & (features != 1)).sum()
    places = features.argmax(dim=1)[ones == 1]
    return bool(others == 0 and (ones <= 1).all() and len(places.unique()) == len(places) and len(places) > 1)


def read_features(path: Path, pert_dim: int) -> dict[str, np.ndarray]:
    """Name → float32 `[pert_dim]`, all finite. Raises `DataError` with what does not fit."""
    path = require_file(path, "features file")
    if path.suffix == ".safetensors":
        table = _read_safetensors(path)
    elif path.suffix in (".csv", ".tsv"):
        table = _read_text(path)
    else:
        raise ConfigError(
            f"a features file is .safetensors, .csv or .tsv, got {path.name!r}. A .pt or .pkl file may run code when it is "
            "opened; turn it into .safetensors first (docs/prediction.md shows how)"
        )
    wrong = [f"{name!r} has {value.size} numbers" for name, value in table.items() if value.shape != (pert_dim,)]
    if wrong:
        raise DataError(f"{path}: the checkpoint's perturbation features are {pert_dim} numbers each", wrong[:20])
    broken = [repr(name) for name, value in table.items() if not np.isfinite(value).all()]
    if broken:
        raise DataError(f"{path}: NaN or infinite features of {', '.join(broken[:20])}")
    if not table:
        raise DataError(f"{path} holds no features")
    return table


def _require_same(table: dict[str, np.ndarray], checkpoint: Checkpoint) -> None:
    if not table:
        return
    known = checkpoint.feature_rows(list(table)).numpy()
    given = np.stack(list(table.values()))
    difference = np.abs(known - given).max(axis=1)
    limit = SAME_FEATURES * max(1.0, float(np.abs(known).max()))
    differ = [name for name, value in zip(table, difference, strict=True) if value > limit]
    if differ:
        raise DataError(
            f"the features file describes {len(differ)} known perturbations otherwise than the checkpoint "
            f"({', '.join(differ[:5])}); unseen ones described that way would be misread. Use features from the model that "
            "made the checkpoint's"
        )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name).float().numpy() for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}") from error


def _read_text(path: Path) -> dict[str, np.ndarray]:
    table: dict[str, np.ndarray] = {}
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            for values in csv.reader(handle, delimiter="\t" if path.suffix == ".tsv" else ","):
                if not values:
                    continue
                name = values[0].strip()
                if name in table:
                    problems.append(f"{name!r} occurs twice")
                try:
                    table[name] = np.array(values[1:], dtype=np.float32)
                except ValueError as error:
                    problems.append(f"{name!r}: {error}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if problems:
        raise DataError(f"{path} is not a table of features", problems[:20])
    return table
