"""Cell sets of a request: which control cells each starts from, decided by names and seed alone.

A set is the unit that the network sees: cells of one perturbation, one cell type (and one batch where asked). Its
controls come from a generator seeded by a hash of (seed, perturbation, cell type, batch, set number), so that batch
size, the order of the request, its neighbours and the number of devices change nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedSet:
    """One cell set before it is predicted."""

    item: int
    """Position of its item in the request."""
    perturbation: str
    cell_type: str
    batch: str | None
    """The batch that was asked for; None: the controls' own batches."""
    number: int
    """0 for the first set of an item."""
    control_indices: np.ndarray
    """Rows of the control pool `[n]`, one for each cell to predict."""
    seed: int
    """The request's seed."""
    median_umi: float | None = None

    @property
    def num_cells(self) -> int:
        return len(self.control_indices)

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator of this set's own, for anything drawn besides the controls."""
        return set_generator(self.seed, self.perturbation, self.cell_type, self.batch, self.number, purpose)


@dataclass(frozen=True)
class PlannedItem:
    """One item of a request with the control cells that its sets are drawn from."""

    position: int
    """Its position in the request."""
    perturbation: str
    num_cells: int
    cell_type: str
    batch: str | None
    """The batch that was asked for; None: the controls' own batches."""
    rows: np.ndarray
    """Rows of the control pool that fit."""
    median_umi: float | None = None

    def sets(self, seed: int, set_size: int) -> Iterator[PlannedSet]:
        """Its sets in order, `set_size` cells each, the last may be smaller; drawn as they are asked for."""
        for number, start in enumerate(range(0, self.num_cells, set_size)):
            rng = set_generator(seed, self.perturbation, self.cell_type, self.batch, number, "controls")
            chosen = self.rows[draw(rng, len(self.rows), set_size)[: self.num_cells - start]]
            yield PlannedSet(
                self.position, self.perturbation, self.cell_type, self.batch, number, chosen, seed, self.median_umi
            )


def set_generator(
    seed: int, perturbation: str, cell_type: str, batch: str | None, number: int, purpose: str
) -> np.random.Generator:
    """The generator that belongs to one set and one purpose."""
    key = json.dumps([seed, perturbation, cell_type, batch, number, purpose]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))


def draw(rng: np.random.Generator, num_controls: int, size: int) -> np.ndarray:
    """`size` positions below `num_controls` in random order; none twice, or where there are too few, as evenly as can be."""
    if num_controls >= size:
        return rng.choice(num_controls, size=size, replace=False)
    rounds = -(-size // num_controls)
    return np.concatenate([rng.permutation(num_controls) for _ in range(rounds)])[:size]


def windows(sets: Iterable[PlannedSet], most_cells: int) -> Iterator[list[PlannedSet]]:
    """Consecutive sets, at most `most_cells` cells together (a larger set comes alone)."""
    window: list[PlannedSet] = []
    num_cells = 0
    for planned in sets:
        if window and num_cells + planned.num_cells > most_cells:
            yield window
            window, num_cells = [], 0
        window.append(planned)
        num_cells += planned.num_cells
    if window:
        yield window
