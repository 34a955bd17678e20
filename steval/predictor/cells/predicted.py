"""Predicted cells as they pass from an engine, a queue or files to a writer; without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steval.predictor.sets import PlannedSet


@dataclass(frozen=True)
class PredictionFacts:
    """Where predicted cells come from, for the record of an output."""

    made_by: str
    """The command."""
    checkpoint: str
    """Path of the checkpoint."""
    checkpoint_digest: str
    engine: Mapping[str, object]
    """Device, number format and every other setting of the engine that computed the cells."""
    expected_error: Sequence[Mapping[str, Any]] | None = None
    """See `Decoder.expected_errors`."""


@dataclass(frozen=True)
class PredictedSet:
    """One predicted cell set; `cells [n, G]` float32 on the checkpoint's scale (or an embedding)."""

    planned: PlannedSet
    cells: np.ndarray

    @property
    def perturbation(self) -> str:
        return self.planned.perturbation

    @property
    def cell_type(self) -> str:
        return self.planned.cell_type

    @property
    def batch(self) -> str | None:
        return self.planned.batch

    @property
    def control_indices(self) -> np.ndarray:
        """Rows of the control pool `[n]` that the cells started from."""
        return self.planned.control_indices


@dataclass(frozen=True)
class PredictedBlock:
    """Several consecutive sets in one matrix `[sum of n, G]`, as they leave the network."""

    sets: list[PlannedSet]
    cells: Any
    """float32: an array, or CSR where that was asked for."""

    def split(self) -> Iterator[PredictedSet]:
        """The sets one by one; views of `cells`, which is an array."""
        start = 0
        for planned in self.sets:
            yield PredictedSet(planned, self.cells[start : start + planned.num_cells])
            start += planned.num_cells
