"""Cells of a plan as the checkpoint's decoding says: the network's own, or an effect carried by measured control cells.

An item (a perturbation in a cell type) is carried as a whole, at most `CARRIED_AT_ONCE` cells together; what is drawn depends on
the item's names and the seed alone, so that batch size, neighbours and order change nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.checkpoints.store import Checkpoint
from steval.data.effects.anchors import Anchors
from steval.data.effects.carry import CARRIED_AT_ONCE
from steval.data.effects.decoding import DecodingChoice, DecodingSettings
from steval.data.effects.expected import ExpectedErrorModel, effect_sizes, training_cells
from steval.errors import ConfigError
from steval.predictor.cells.predicted import PredictedBlock
from steval.predictor.controls import ControlPool
from steval.predictor.features import is_one_hot
from steval.predictor.plan import PredictionPlan, make_plan
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.predictor.sets import PlannedItem, PlannedSet, windows

Network = Callable[[PredictionPlan, bool], Iterable[PredictedBlock]]
"""Gives the network's cells of a plan, its sets in order; the second argument: whether as CSR."""

ITEMS_AT_ONCE = 64
"""Items whose effects the network is asked for together: 9 MB of effects of 18,080 genes."""


class Decoder:
    """A checkpoint's decoding with what it needs: training effects, perturbation features; `chosen` gives another kind."""

    def __init__(self, checkpoint: Checkpoint, settings: DecodingSettings | None = None):
        self.settings = checkpoint.manifest.decoding if settings is None else settings
        _require_possible(self.settings, checkpoint)
        self._checkpoint = dataclasses.replace(checkpoint, weights={})
        self._others: dict[DecodingChoice, Decoder] = {}
        self._anchors = None
        if self.settings.asks_anchor:
            assert checkpoint.effects is not None
            assert self.settings.anchor is not None
            self._anchors = Anchors(checkpoint.effects, self.settings.anchor, vectors(checkpoint))
        fitted = (checkpoint.manifest.calibration or {}).get("expected_error")
        is_own = self.settings == checkpoint.manifest.decoding
        self._error_model = ExpectedErrorModel.parse(fitted, str(checkpoint.path)) if fitted and is_own else None

    def chosen(self, choice: DecodingChoice) -> "Decoder":
        """This decoder, or the one for the kind that a request asks for; raises `ConfigError` where the checkpoint cannot."""
        settings = self.settings.chosen(choice)
        if settings is self.settings:
            return self
        if choice not in self._others:
            self._others[choice] = Decoder(self._checkpoint, settings)
        return self._others[choice]

    def blocks(self, plan: PredictionPlan, network: Network, *, sparse: bool = False) -> Iterator[PredictedBlock]:
        """The cells of `plan`, float32, as CSR where `sparse`. The network is asked for `ITEMS_AT_ONCE` items before any of their
        cells is taken, the first time here, so that memory does not grow with their number.

        Raises `ConfigError` where the pool's cells cannot carry anything.
        """
        if self.settings.kind == "network":
            return iter(network(plan, sparse))
        return carried_blocks(plan, self.settings, lambda items: self.effects(plan, items, network), sparse=sparse)

    def expected_errors(self, plan: PredictionPlan) -> list[dict[str, Any]] | None:
        """For each item of `plan` but the control: perturbation, cell_type, batch, and `mae` (lognorm, see `data.effects.expected`)
        with the ends `low` and `high` of its 90 % interval. None where the checkpoint was not calibrated for it."""
        if self._error_model is None or self._anchors is None:
            return None
        found = []
        for places, items in _by_place(plan).items():
            names = [item.perturbation for item in items]
            told = self._anchors.effects(names, places[0], plan.control_mean(items[0]))
            cells = training_cells(self._anchors.record, names)
            for item, values in zip(items, self._error_model.told(effect_sizes(told), cells).tolist(), strict=True):
                mae, low, high = values
                found.append((item.position, {
                    "perturbation": item.perturbation, "cell_type": item.cell_type, "batch": item.batch, "mae": mae,
                    "low": low, "high": high,
                }))  # fmt: skip
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def effects(self, plan: PredictionPlan, items: Sequence[PlannedItem], network: Network) -> list[np.ndarray]:
        """The effect `[G]` that cells of each of `items` carry, float64; none for the control label."""
        told = network_effects(plan, self.settings, network, items) if self.settings.asks_network else {}
        return [self._effect(plan, item, told.get(item.position)) for item in items]

    def _effect(self, plan: PredictionPlan, item: PlannedItem, network: np.ndarray | None) -> np.ndarray:
        mean = plan.control_mean(item)
        if item.perturbation == plan.manifest.control:
            return np.zeros_like(mean)
        simple = None
        if self._anchors is not None:
            simple = self._anchors.effects([item.perturbation], item.cell_type, mean)[0]
        return self.settings.combined(network, simple)


def _by_place(plan: PredictionPlan) -> dict[tuple[str, str | None], list[PlannedItem]]:
    """Items but the control by cell type and batch."""
    places: dict[tuple[str, str | None], list[PlannedItem]] = {}
    for item in plan.items:
        if item.perturbation != plan.manifest.control:
            places.setdefault((item.cell_type, item.batch), []).append(item)
    return places


def carried_blocks(
    plan: PredictionPlan,
    settings: DecodingSettings,
    effects: Callable[[Sequence[PlannedItem]], Sequence[np.ndarray]],
    *,
    sparse: bool,
) -> Iterator[PredictedBlock]:
    """Cells of `plan` that carry `effects`, which are asked for `ITEMS_AT_ONCE` items at a time, the first time here.

    Raises `ConfigError` where the pool's cells cannot carry anything.
    """
    if not plan.pool.has_measured:
        raise ConfigError(
            f"predictions of this checkpoint are carried by measured control cells, and {plan.pool.name} hold the network's "
            "input alone; give control cells with --controls, or take the network's own cells with --decoding network"
        )
    groups = [plan.items[start : start + ITEMS_AT_ONCE] for start in range(0, len(plan.items), ITEMS_AT_ONCE)]
    first = effects(groups[0])

    def blocks() -> Iterator[PredictedBlock]:
        for items in groups:
            told = first if items is groups[0] else effects(items)
            for item, effect in zip(items, told, strict=True):
                for sets, cells in _carried(plan, settings, item, effect):
                    yield PredictedBlock(sets, cells if sparse else cells.toarray())

    return blocks()


def _carried(
    plan: PredictionPlan, settings: DecodingSettings, item: PlannedItem, effect: np.ndarray
) -> Iterator[tuple[list[PlannedSet], sp.csr_matrix]]:
    for group in windows(item.sets(plan.request.seed, plan.set_size), CARRIED_AT_ONCE):
        cells = plan.pool.measured(np.concatenate([one.control_indices for one in group]))
        generator = group[0].generator("carry")
        carried = settings.carried(cells, plan.control_mean(item), effect, generator, plan.manifest.target_sum)
        yield group, carried.cells


def vectors(checkpoint: Checkpoint) -> Mapping[str, np.ndarray] | None:
    """Feature vectors by perturbation, the control left out; None where they are one-hot and say nothing."""
    if is_one_hot(checkpoint.features):
        return None
    manifest = checkpoint.manifest
    named = zip(manifest.perturbation_names, checkpoint.features.numpy(), strict=True)
    return {name: vector for name, vector in named if name != manifest.control}


def network_effects(
    plan: PredictionPlan, settings: DecodingSettings, network: Network, items: Sequence[PlannedItem] | None = None
) -> dict[int, np.ndarray]:
    """What the network says that `items` of `plan` (all of them) change, float64 `[G]` by position: predicted less control mean.

    Each is the mean of `effect_cells` cells; with `subtract_null` what it says of the control label in the same cell type and
    batch is taken off.
    """
    wanted = plan.items if items is None else items
    asked = [item for item in wanted if item.perturbation != plan.manifest.control]
    places = sorted({(item.cell_type, item.batch) for item in asked}, key=str)
    entries = [_asked(item.perturbation, item.cell_type, item.batch, settings) for item in asked]
    if settings.subtract_null:
        entries += [_asked(plan.manifest.control, cell_type, batch, settings) for cell_type, batch in places]
    if not entries:
        return {}
    request = PredictionRequest(items=tuple(dict.fromkeys(entries)), seed=plan.request.seed)
    inner = make_plan(request, plan.pool, plan.manifest, plan.set_size)
    changes = dict(zip(request.items, _changes(inner, network), strict=True))
    effects = {}
    for item in asked:
        change = changes[_asked(item.perturbation, item.cell_type, item.batch, settings)]
        if settings.subtract_null:
            change = change - changes[_asked(plan.manifest.control, item.cell_type, item.batch, settings)]
        effects[item.position] = change
    return effects


def _asked(perturbation: str, cell_type: str, batch: str | None, settings: DecodingSettings) -> RequestItem:
    return RequestItem(perturbation=perturbation, cell_type=cell_type, batch=batch, num_cells=settings.effect_cells)


def _changes(plan: PredictionPlan, network: Network) -> list[np.ndarray]:
    """Mean change of each item of `plan`."""
    totals = [np.zeros(0) for _ in plan.items]
    for block in network(plan, False):
        for one in block.split():
            change = one.cells.sum(axis=0, dtype=np.float64) - _measured_sum(plan.pool, one.control_indices)
            place = one.planned.item
            totals[place] = change if not len(totals[place]) else totals[place] + change
    return [total / item.num_cells for total, item in zip(totals, plan.items, strict=True)]


def _measured_sum(pool: ControlPool, rows: np.ndarray) -> np.ndarray:
    return np.asarray(pool.measured(rows).sum(axis=0, dtype=np.float64)).ravel()


def _require_possible(settings: DecodingSettings, checkpoint: Checkpoint) -> None:
    manifest = checkpoint.manifest
    problems = []
    if settings.kind == "carried" and (manifest.output_genes is None or manifest.scale != "lognorm"):
        problems.append("effects are carried on the lognorm scale of genes, which this checkpoint does not predict")
    if settings.asks_anchor and checkpoint.effects is None:
        problems.append("it asks for a simple model, and the checkpoint carries no training effects")
    if problems:
        raise ConfigError(f"{checkpoint.path} cannot be decoded so", problems)
