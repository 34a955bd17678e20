"""What a request comes to: its items with the control cells that they start from, checked against checkpoint and controls.

A plan needs no network: cells for it come from an engine, from a service's queue, or from files that were written before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from steval.checkpoints.manifest import Manifest
from steval.errors import ConfigError
from steval.limits import MOST_SET_CELLS
from steval.predictor.controls import ControlPool, control_mean
from steval.predictor.requests import PredictionRequest, require_known, require_unique
from steval.predictor.sets import PlannedItem, PlannedSet
from steval.wording import counted, listed


@dataclass(frozen=True)
class PredictionPlan:
    """A request that checkpoint and controls can serve."""

    request: PredictionRequest
    pool: ControlPool
    manifest: Manifest
    """Of the checkpoint whose predictions are asked for."""
    set_size: int
    """Cells of a set."""
    items: tuple[PlannedItem, ...]
    """In the order of the request."""
    _control_means: dict[tuple[str, str | None], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_cells(self) -> int:
        """Cells to predict in all."""
        return self.request.num_cells

    @property
    def cell_types(self) -> list[str]:
        """Those that are predicted, sorted."""
        return sorted({item.cell_type for item in self.items})

    def control_mean(self, item: PlannedItem) -> np.ndarray:
        """Mean measured expression `[G]` float64 of all control cells that `item` may start from."""
        place = (item.cell_type, item.batch)
        if place not in self._control_means:
            self._control_means[place] = control_mean(self.pool, item.rows).astype(np.float64)
        return self._control_means[place]

    def sets(self) -> Iterator[PlannedSet]:
        """The sets of every item in request order, drawn one by one: memory does not grow with their number."""
        for item in self.items:
            yield from item.sets(self.request.seed, self.set_size)


def make_plan(
    request: PredictionRequest, pool: ControlPool, manifest: Manifest, set_size: int | None = None
) -> PredictionPlan:
    """The plan of `request` from `pool`; `set_size` None: the checkpoint's cells per set.

    Raises `UnknownPerturbationError`, or `ConfigError` with every item whose cell type or batch the pool lacks.
    """
    require_unique(request.items, "the request")
    require_known((item.perturbation for item in request.items), manifest.perturbation_names, manifest.control)
    _require_batches(pool, manifest)
    size = set_size or manifest.model.cell_set_size
    if size > MOST_SET_CELLS:
        raise ConfigError(
            f"sets of {counted(size, 'cell')} cannot be predicted: every cell of a set looks at every other; at most "
            f"{MOST_SET_CELLS:,} are "
            "allowed (--set-size)"
        )
    members = _Members(pool)
    problems: dict[str, None] = {}
    items: list[PlannedItem] = []
    for position, item in enumerate(request.items):
        batch = item.batch or request.batch
        try:
            cell_type = members.cell_type(item.cell_type or request.cell_type)
            rows = members.rows(cell_type, batch)
        except ConfigError as error:
            problems[str(error)] = None
            continue
        items.append(PlannedItem(position, item.perturbation, item.num_cells, cell_type, batch, rows, item.median_umi))
    if problems:
        raise ConfigError("the controls cannot serve this request", list(problems))
    return PredictionPlan(request, pool, manifest, size, tuple(items))


def _require_batches(pool: ControlPool, manifest: Manifest) -> None:
    if not manifest.model.batch_encoder:
        return
    unknown = sorted(set(pool.batches.tolist()) - set(manifest.batches))
    if unknown:
        raise ConfigError(
            f"the checkpoint encodes batches, and {pool.name} have {len(unknown)} that it does not know: "
            f"{', '.join(map(repr, unknown[:10]))}; known: {listed(manifest.batches, 20)}"
        )


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
        known = listed(self._names, 20)
        if asked is None:
            raise ConfigError(
                f"{self._pool.name} hold {counted(len(self._names), 'cell type')} ({known}); choose with --cell-type NAME or all"
            )
        raise ConfigError(f"{self._pool.name} hold no cells of cell type {asked!r}; they hold: {known}")

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
            raise ConfigError(
                f"{self._pool.name} hold no {cell_type} cells of batch {batch!r}; they hold: {listed(names)}"
            )
