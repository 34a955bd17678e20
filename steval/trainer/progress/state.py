"""How far a run has come, and `last.ckpt`: everything that `--resume` needs, as tensors and plain values only, so that it loads
with `weights_only`."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor

from steval.checkpoints.manifest import PhaseRecord
from steval.data.files import atomic_path
from steval.errors import CheckpointError, DataError

STATE_FORMAT = "steval-trainer-state-3"
_EARLIER: dict[str, dict[str, Any]] = {
    "steval-trainer-state-1": {"best_digest": None, "best_adapter": {}},
    "steval-trainer-state-2": {"best_adapter": {}},
}
"""Earlier formats that are read too, with what they lacked."""


@dataclass
class Progress:
    """Counters of a run between two optimiser steps."""

    phase: int = 0
    """Number of the phase, from 0."""
    phase_step: int = 0
    """Optimiser steps done in it."""
    step: int = 0
    """Optimiser steps done over all phases."""
    seconds: float = 0.0
    """Seconds of training, validation and saving included."""
    best: dict[str, Any] = field(default_factory=dict)
    """`metric`, `value`, `step`, `phase` of the best checkpoint; empty before the first."""
    best_digest: str | None = None
    """Digest of its weights (`weights_digest`), where this process wrote it."""
    best_adapter: dict[str, Tensor] = field(default_factory=dict)
    """The best weights' LoRA matrices by name (those beside matrices of the base); empty where they have none."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `steps`, `best_step`, `validation` (the latest) of each phase begun."""

    @classmethod
    def restore(cls, state: Any) -> Self:
        """From the keys of `TrainerState` that have the names of these fields."""
        return cls(**{entry.name: state[entry.name] for entry in fields(cls)})

    def begin_phase(self, number: int, name: str) -> None:
        """Start phase `number` at its first step."""
        self.phase, self.phase_step = number, 0
        self.phases.append({"name": name, "steps": 0, "best_step": None, "validation": {}})

    def advance(self) -> None:
        """One more optimiser step."""
        self.step += 1
        self.phase_step += 1
        self.phases[-1]["steps"] = self.phase_step

    def is_better(self, value: float, lowest: bool) -> bool:
        """Whether `value` beats the best so far."""
        if not math.isfinite(value):
            return False
        return not self.best or (value < self.best["value"] if lowest else value > self.best["value"])

    def note_best(self, metric: str, value: float) -> None:
        """The weights of this step are the best so far."""
        self.best = {"metric": metric, "value": value, "step": self.step, "phase": self.phases[-1]["name"]}
        self.phases[-1]["best_step"] = self.step

    def records(self) -> tuple[PhaseRecord, ...]:
        """For the checkpoint's training record."""
        return tuple(PhaseRecord.parse(phase, source="the phase record") for phase in self.phases)


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
    """`metric`, `value`, `step`, `phase` of the best checkpoint; empty before the first."""
    best_digest: str | None
    """Digest of its weights: the file is on disk, under a name that may have moved on since."""
    best_adapter: dict[str, Tensor]
    """LoRA matrices of the best weights."""
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
    if isinstance(state, dict) and state.get("format") in _EARLIER:
        state = {**_EARLIER[state["format"]], **state, "format": STATE_FORMAT}
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is no trainer state of this steval (format {found!r}, needed {STATE_FORMAT!r})")
    absent = sorted(TrainerState.__annotations__.keys() - state.keys())
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}")
    return cast(TrainerState, state)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
