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

from steval.errors import ConfigError
from steval.predictor.controls import ControlPool
from steval.predictor.requests import PredictionRequest


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


def plan_sets(request: PredictionRequest, pool: ControlPool, set_size: int) -> list[PlannedSet]:
    """The sets of every item in request order: `set_size` cells each, the last of an item may be smaller.

    Raises `ConfigError` or `DataError` with every item whose cell type or batch the pool lacks.
    """
    members = _Members(pool)
    problems: dict[str, None] = {}
    planned: list[PlannedSet] = []
    for position, item in enumerate(request.items):
        batch = item.batch or request.batch
        try:
            cell_type = members.cell_type(item.cell_type or request.cell_type)
            rows = members.rows(cell_type, batch)
        except ConfigError as error:
            problems[str(error)] = None
            continue
        for number, start in enumerate(range(0, item.num_cells, set_size)):
            size = min(set_size, item.num_cells - start)
            rng = set_generator(request.seed, item.perturbation, cell_type, batch, number, "controls")
            chosen = rows[draw(rng, len(rows), set_size)[:size]]
            planned.append(
                PlannedSet(position, item.perturbation, cell_type, batch, number, chosen, request.seed, item.median_umi)
            )
    if problems:
        raise ConfigError("the controls cannot serve this request", list(problems))
    return planned


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


class _Members:
    """Rows of a pool by cell type and batch."""

    def __init__(self, pool: ControlPool):
        self._pool = pool
        self._names = pool.cell_type_names
        self._rows: dict[tuple[str, str | None], np.ndarray] = {}

    def cell_type(self, asked: str | None) -> str:
        if asked is None and len(self._names) == 1:
            return self._names[0]
        if asked in self._names:
            return str(asked)
        listed = ", ".join(self._names[:20])
        if asked is None:
            raise ConfigError(
                f"{self._pool.name} hold {len(self._names)} cell types ({listed}); choose with --cell-type NAME or all"
            )
        raise ConfigError(f"{self._pool.name} hold no cells of cell type {asked!r}; they hold: {listed}")

    def rows(self, cell_type: str, batch: str | None) -> np.ndarray:
        if (cell_type, batch) not in self._rows:
            chosen = self._pool.cell_types == cell_type
            if batch is not None:
                self._require_batch(cell_type, batch, chosen)
                chosen = chosen & (self._pool.batches == batch)
            self._rows[cell_type, batch] = np.flatnonzero(chosen)
        return self._rows[cell_type, batch]

    def _require_batch(self, cell_type: str, batch: str, chosen: np.ndarray) -> None:
        names = sorted(set(self._pool.batches[chosen].tolist()))
        if batch not in names:
            shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise ConfigError(f"{self._pool.name} hold no {cell_type} cells of batch {batch!r}; they hold: {shown}")
