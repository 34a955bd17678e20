"""`last.ckpt`: everything that `--resume` needs, as tensors and plain values only, so that it loads with `weights_only`."""

from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from steval.data.files import atomic_path
from steval.errors import CheckpointError, DataError

STATE_FORMAT = "steval-trainer-state-1"


class TrainerState(TypedDict):
    """A moment between two optimiser steps."""

    format: str
    config_digest: str
    phase: int
    """Number of the phase, from 0."""
    phase_step: int
    """Optimiser steps done in it; batches and random numbers are functions of the seed and this."""
    step: int
    """Optimiser steps done over all phases."""
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Running average of the trainable weights; empty where there is none."""
    optimiser: dict[str, Any]
    window: list[Tensor]
    """Losses since the last row of metrics.csv."""
    best: dict[str, Any]
    """`value`, `step`, `phase` of the best checkpoint; empty before the first."""
    phases: list[dict[str, Any]]
    """Records of the phases begun so far."""
    seconds: float
    """Seconds of training."""


def save_state(path: Path, state: TrainerState) -> None:
    """Write `last.ckpt` atomically: a reader finds the old one or the new one. A full disk is a `DataError`."""
    try:
        with atomic_path(path) as partial, partial.open("wb") as handle:
            torch.save(dict(state), handle)
    except (RuntimeError, DataError) as error:
        raise DataError(
            f"cannot write {path}: {_first_line(error)}. The last state written whole is still there: free some space and "
            "continue with --resume"
        ) from error


def load_state(path: Path) -> TrainerState:
    """Read `last.ckpt` through `weights_only` loading; anything else is a `CheckpointError`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such trainer state: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a trainer state: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is no trainer state of this steval (format {found!r}, needed {STATE_FORMAT!r})")
    absent = sorted(TrainerState.__annotations__.keys() - state.keys())
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}")
    return cast(TrainerState, state)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
