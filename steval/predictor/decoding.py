"""Cells of a plan as the checkpoint's decoding says: the network's own, or an effect carried by measured control cells.

An item (a perturbation in a cell type) is carried as a whole, at most `CARRIED_AT_ONCE` cells together; what is drawn depends on
the item's names and the seed alone, so that batch size, neighbours and order change nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import scipy.sparse as sp

from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import Checkpoint
from steval.data.effects.anchors import Anchors
from steval.data.effects.carry import CARRIED_AT_ONCE
from steval.data.effects.decoding import DecodingSettings
from steval.errors import ConfigError
from steval.predictor.controls import ControlPool
from steval.predictor.features import is_one_hot
from steval.predictor.means import control_mean
from steval.predictor.plan import PredictionPlan, make_plan
from steval.predictor.predicted import PredictedBlock
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.predictor.sets import PlannedItem, PlannedSet, windows

Network = Callable[[PredictionPlan, bool], Iterable[PredictedBlock]]
"""Gives the network's cells of a plan, its sets in order; the second argument: whether as CSR."""


class Decoder:
    """A checkpoint's decoding with what it needs: training effects, perturbation features."""

    def __init__(self, checkpoint: Checkpoint, settings: DecodingSettings | None = None):
        self.settings = checkpoint.manifest.decoding if settings is None else settings
        _require_possible(self.settings, checkpoint)
        self._anchors = None
        if self.settings.asks_anchor:
            assert checkpoint.effects is not None
            assert self.settings.anchor is not None
            self._anchors = Anchors(checkpoint.effects, self.settings.anchor, vectors(checkpoint))

    def blocks(self, plan: PredictionPlan, network: Network, *, sparse: bool = False) -> Iterator[PredictedBlock]:
        """The cells of `plan`, float32, as CSR where `sparse`. `network` is asked here, before any cell is taken.

        Raises `ConfigError` where the pool's cells cannot carry anything.
        """
        if self.settings.kind == "network":
            return iter(network(plan, sparse))
        if not plan.pool.has_measured:
            raise ConfigError(
                f"predictions of this checkpoint are carried by measured control cells, and {plan.pool.name} hold the network's "
                "input alone; give control cells with --controls, or take the network's own cells with --decoding network"
            )
        told = network_effects(plan, self.settings, network) if self.settings.asks_network else {}
        return self._all_carried(plan, told, sparse)

    def _all_carried(
        self, plan: PredictionPlan, told: Mapping[int, np.ndarray], sparse: bool
    ) -> Iterator[PredictedBlock]:
        means: dict[tuple[str, str | None], np.ndarray] = {}
        for item in plan.items:
            place = (item.cell_type, item.batch)
            if place not in means:
                means[place] = control_mean(plan.pool, item.rows).astype(np.float64)
            effect = self._effect(item, plan.manifest, means[place], told.get(item.position))
            for group, cells in self._carried(plan, item, means[place], effect):
                yield PredictedBlock(group, cells if sparse else cells.toarray())

    def _effect(
        self, item: PlannedItem, manifest: Manifest, mean: np.ndarray, network: np.ndarray | None
    ) -> np.ndarray:
        if item.perturbation == manifest.control:
            return np.zeros_like(mean)
        simple = None
        if self._anchors is not None:
            simple = self._anchors.effects([item.perturbation], item.cell_type, mean)[0]
        return self.settings.combined(network, simple)

    def _carried(
        self, plan: PredictionPlan, item: PlannedItem, mean: np.ndarray, effect: np.ndarray
    ) -> Iterator[tuple[list[PlannedSet], sp.csr_matrix]]:
        for group in windows(item.sets(plan.request.seed, plan.set_size), CARRIED_AT_ONCE):
            cells = plan.pool.measured(np.concatenate([one.control_indices for one in group]))
            generator = group[0].generator("carry")
            carried = self.settings.carried(cells, mean, effect, generator, plan.manifest.target_sum)
            yield group, carried.cells


def vectors(checkpoint: Checkpoint) -> Mapping[str, np.ndarray] | None:
    """Feature vectors by perturbation, the control left out; None where they are one-hot and say nothing."""
    if is_one_hot(checkpoint.features):
        return None
    manifest = checkpoint.manifest
    named = zip(manifest.perturbation_names, checkpoint.features.numpy(), strict=True)
    return {name: vector for name, vector in named if name != manifest.control}


def network_effects(plan: PredictionPlan, settings: DecodingSettings, network: Network) -> dict[int, np.ndarray]:
    """What the network says the items of `plan` change, float64 `[G]` by position: predicted less control mean.

    Each is the mean of `effect_cells` cells; with `subtract_null` what it says of the control label in the same cell type and
    batch is taken off.
    """
    asked = [item for item in plan.items if item.perturbation != plan.manifest.control]
    places = sorted({(item.cell_type, item.batch) for item in asked}, key=str)
    items = [_asked(item.perturbation, item.cell_type, item.batch, settings) for item in asked]
    if settings.subtract_null:
        items += [_asked(plan.manifest.control, cell_type, batch, settings) for cell_type, batch in places]
    if not items:
        return {}
    request = PredictionRequest(items=tuple(dict.fromkeys(items)), seed=plan.request.seed)
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
