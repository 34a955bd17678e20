"""How far a run has come: the part of its state that is neither weights nor optimiser."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

from steval.checkpoints.manifest import PhaseRecord


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
    phases: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `steps`, `best_step`, `validation` (the latest) of each phase begun."""

    @classmethod
    def restore(cls, state: Any) -> Self:
        """From the keys of `TrainerState` that have the names of these fields."""
        return cls(**{name: state[name] for name in ("phase", "phase_step", "step", "seconds", "best", "phases")})

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
