"""Metrics on counts of a pair: `evaluation.evaluate` hands such profiles here."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steval.evaluator.measure.count_real import real_counts
from steval.evaluator.measure.count_scan import CountTable, scan_counts
from steval.evaluator.measure.de import DifferentialExpression
from steval.evaluator.metrics.count_inputs import EPSILON, CountInputs

if TYPE_CHECKING:
    from steval.evaluator.cells.pair import Pair
    from steval.evaluator.clock import Clock


def read_count_inputs(pair: "Pair", cache: Path | None, threads: int, clock: "Clock") -> tuple[CountInputs, bool]:
    """Read both sides once (the real one where it is not at hand); says whether the real side came from the cache."""
    with clock.stage("reading real"):
        real = real_counts(pair.real, pair.perturbations, pair.columns.perturbation, pair.control, threads, cache=cache)
    with clock.stage("reading pred"):
        pred = pair.pred.tables.get(("counts", pair.control))
        if pred is None:
            pred = scan_counts(pair.pred, pair.perturbations, real.controls, threads)
            pair.pred.tables["counts", pair.control] = pred
    return CountInputs(real.table, pred, pair.genes), real.from_cache


def differential_expression(table: CountTable, inputs: CountInputs) -> DifferentialExpression:
    """A table's tests as one of differential expression; means are CPM."""
    return DifferentialExpression(
        table.names,
        tuple(inputs.genes[column] for column in table.columns),
        table.num_cells,
        table.control_cells,
        table.cpm,
        table.control_cpm,
        table.statistic,
        table.p_value,
        EPSILON,
    )


def profiles_by_name(inputs: CountInputs, control: str) -> Mapping[str, tuple[tuple[str, ...], np.ndarray]]:
    """Log profiles of each side with the control's among them: side → (names sorted, `[P + 1, G]`)."""
    names = sorted([*inputs.perturbations, control])
    order = [names.index(name) for name in (*inputs.perturbations, control)]
    found = {}
    for side, profiles, own in (
        ("real", inputs.real_profiles, inputs.real_control),
        ("pred", inputs.pred_profiles, inputs.pred_control),
    ):
        stacked = np.empty((len(names), profiles.shape[1]))
        stacked[order] = np.vstack([profiles, own])
        found[side] = (tuple(names), stacked)
    return found
