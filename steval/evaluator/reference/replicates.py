"""The replicate scale of metrics on counts: 0 is the generic response, 1 what one half of the real cells says of the other.

cell-eval2 0.20.0's anchors, from the real cells alone: b is the mean of each metric for the generic response (`generic`), r the
mean over five splits of each perturbation's and the controls' cells into disjoint halves, half against half with controls of
their own. For `de_wilcoxon_lfc_nmae`, r compares the halves' fold changes over the genes that are significant in all cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.measure.cache import cache_content, entry_path, keep, load_entry, store_entry
from steval.evaluator.measure.count_real import real_counts
from steval.evaluator.measure.count_scan import CountTable, RankedControls, scan_counts
from steval.evaluator.measure.counts import Halves
from steval.evaluator.metrics.count_functions import fold_change_error, relative_fold_change_error
from steval.evaluator.metrics.count_inputs import CountInputs, tested_genes
from steval.evaluator.metrics.metric import Metric
from steval.evaluator.reference.ceiling import disjoint_halves
from steval.evaluator.reference.generic import generic_cells

NUM_SPLITS = 5
BASE_SEED = 0


@dataclass(frozen=True)
class ReplicateScale:
    """Both ends of the scale, by metric; None where an end cannot be told."""

    baseline: Mapping[str, float | None]
    replicate: Mapping[str, float | None]
    notes: tuple[str, ...] = ()

    def ends(self, metric: Metric) -> tuple[float, float] | None:
        """b and r of a member; None where one is missing, or r is no better than b or than the worst value there is."""
        low, high = self.baseline.get(metric.name), self.replicate.get(metric.name)
        if metric.best == "none" or low is None or high is None:
            return None
        better = high > low if metric.best == "high" else high < low
        floored = metric.member_limits[0] is not None
        return (low, high) if better and (floored or high > 0) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"baseline": dict(self.baseline), "replicate": dict(self.replicate), "notes": list(self.notes)}


def split_seeds() -> list[int]:
    """Seeds of the splits."""
    return [int(seed) for seed in np.random.SeedSequence(BASE_SEED).generate_state(NUM_SPLITS)]


def split_cells(pair: Pair) -> Halves:
    """The splits of the real cells into halves, the same cells as cell-eval2 puts there."""
    groups = pair.real.groups
    rows = np.sort(np.concatenate(list(groups.values())))
    labels = pair.real.file.obs[pair.columns.perturbation].iloc[rows]
    half_of = np.full((pair.real.file.num_cells, NUM_SPLITS), -1, dtype=np.int8)
    for split, seed in enumerate(split_seeds()):
        for half, cells in enumerate(disjoint_halves(labels, pair.control, seed)[:2]):
            half_of[rows[cells], split] = half
    return Halves({name: half_of[cells] for name, cells in groups.items()}, NUM_SPLITS)


def replicate_ends(
    full: CountTable, halves: Sequence[CountTable], genes: Sequence[str], chosen: Sequence[Metric]
) -> tuple[dict[str, float], list[str]]:
    """r of each metric, and what stands in its way: an end that any split leaves open is none (no value for it)."""
    values: dict[str, list[float]] = {metric.name: [] for metric in chosen}
    problems: dict[str, str] = {}
    for split in range(0, len(halves), 2):
        inputs = CountInputs(halves[split], halves[split + 1], genes)
        for metric in chosen:
            try:
                if metric.function is fold_change_error:
                    found = _full_gate_error(full, inputs, genes)
                else:
                    found = metric.function(dict(metric.options), inputs)
                values[metric.name].append(mean_of(found))
            except EvaluationError as error:
                problems.setdefault(metric.name, str(error))
    ends = {}
    for name, found in values.items():
        if len(found) == len(halves) // 2 and np.isfinite(found).all():
            ends[name] = float(np.mean(found))
        else:
            problems.setdefault(name, "half of the real cells against the other half gives no value")
    return ends, [f"{name} has no replicate: {why}" for name, why in problems.items()]


def _full_gate_error(full: CountTable, halves: CountInputs, genes: Sequence[str]) -> dict[str, float]:
    """Fold changes of two halves against each other, over the genes significant in all cells."""
    if full.num_cells.min(initial=2) < 2:
        raise EvaluationError("a perturbation has one real cell only, which cannot be divided")
    if halves.perturbations != full.names:
        raise EvaluationError("not every perturbation can be divided")
    gate = CountInputs(full, full, genes)
    changes = []
    for table in (halves.real, halves.pred):
        shared, places, own = np.intersect1d(gate.columns, table.columns, return_indices=True)
        grid = np.full((len(table.names), len(gate.columns)), np.nan)
        grid[:, places] = tested_genes(table, table.columns).log2_fold_change[:, own] if len(shared) else np.nan
        changes.append(grid)
    return relative_fold_change_error(gate, changes[0], changes[1])


def baseline_ends(
    pair: Pair, full: CountTable, controls: RankedControls, chosen: Sequence[Metric], threads: int
) -> tuple[dict[str, float], list[str]]:
    """b of each metric, and what stands in its way."""
    genes = pair.genes
    try:
        own = CountInputs(full, full, genes).own_gene
        made = generic_cells(
            pair.real, pair.control, full.sums / full.num_cells[:, None], full.control_sums / full.control_cells, own,
            full.num_cells,
        )  # fmt: skip
        table = scan_counts(made, full.names, controls, threads, whole=False)
    except EvaluationError as error:
        return {}, [f"the generic response, the lower end of the scale, cannot be made: {error}"]
    inputs, ends, problems = CountInputs(full, table, genes), {}, []
    for metric in chosen:
        try:
            value = mean_of(metric.function(dict(metric.options), inputs))
        except EvaluationError as error:
            problems.append(f"{metric.name} has no baseline: {error}")
            continue
        if np.isfinite(value):
            ends[metric.name] = value
        else:
            problems.append(f"{metric.name} has no baseline: it is not defined for any perturbation")
    return ends, problems


def mean_of(value: Any) -> float:
    """Mean over the perturbations that have a value; NaN where none has."""
    if not isinstance(value, dict):
        return float(value)
    return float(np.mean(list(value.values()))) if value else float("nan")


def replicate_scale(pair: Pair, chosen: Sequence[Metric], threads: int, cache: Path | None = None) -> ReplicateScale:
    """Both ends of the scale of the real cells of `pair`, through the cache.

    Leaves the measured real cells with the pair (`count_real.real_counts`), so that they are read once.
    """
    path = None if cache is None else _path(pair, chosen, cache)
    known = None if path is None else load_entry(path, lambda described, _: ReplicateScale(**_as_tuples(described)))
    if known is not None:
        return known
    real = real_counts(
        pair.real, pair.perturbations, pair.columns.perturbation, pair.control, threads, split_cells(pair), cache
    )
    replicate, missing = replicate_ends(real.table, real.halves, pair.genes, chosen)
    baseline, lacking = baseline_ends(pair, real.table, real.controls, chosen, threads)
    scale = ReplicateScale(baseline, replicate, (*lacking, *missing))
    unusable = [metric.name for metric in chosen if metric.best != "none" and scale.ends(metric) is None]
    if unusable:
        note = (
            f"{', '.join(unusable)} cannot be normalised: its replicates are no better than the generic response, or an end "
            "of its scale is missing; so there is no overall score"
        )
        scale = replace(scale, notes=(*scale.notes, note))
    if path is not None:
        keep(lambda: store_entry(path, scale.as_dict(), {"none": np.empty(0)}))
    return scale


def _path(pair: Pair, metrics: Sequence[Metric], cache: Path) -> Path:
    content = cache_content(pair.real, pair.columns.perturbation, pair.control)
    needs = {"counts": "scale", "metrics": [metric.name for metric in metrics], "splits": split_seeds()}
    return entry_path(cache, content, needs)


def _as_tuples(described: dict[str, Any]) -> dict[str, Any]:
    return {**described, "notes": tuple(described["notes"])}
