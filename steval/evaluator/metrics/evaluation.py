"""Metrics of a pair: what scoring computes and hands to tables, baselines and reports.

    evaluation = evaluate(pair, "vcc")                      # or a list of metric names
    evaluation.results      pl.DataFrame: `perturbation` + one column per metric, cell-eval's row and column order;
                            null: cell-eval leaves the value out (e.g. no significant gene); NaN: undefined or failed
    evaluation.failures     pl.DataFrame (perturbation | null, metric, reason): why a value is null or NaN
    evaluation.de_real, .de_pred      pl.DataFrame with pdex's columns (made when asked for), or None where no metric needs DE
    evaluation.pseudobulk_real, .pseudobulk_pred   Pseudobulk(names, values [P+1, G]), control included
    evaluation.timings      dict stage → seconds;  evaluation.notes  tuple of sentences

Metrics are pure: a subset gives the same values as all of them. Nothing else is promised.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.clock import Clock
from steval.evaluator.measure.cache import cached_scan
from steval.evaluator.measure.de import DifferentialExpression
from steval.evaluator.measure.de_tables import DEComparison, compare
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.measure.scan import Needs, SideTables
from steval.evaluator.metrics.catalog import find_metric
from steval.evaluator.metrics.functions import METRIC_ERRORS, Inputs, Value
from steval.evaluator.metrics.metric import Metric
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.schemas import FAILURE_SCHEMA
from steval.machine import num_cores
from steval.wording import listed

if TYPE_CHECKING:
    from steval.evaluator.metrics.count_inputs import CountInputs

logger = logging.getLogger(__name__)

DESource = DifferentialExpression | pl.DataFrame | None


@dataclass(frozen=True)
class Pseudobulk:
    """Mean lognorm expression of each perturbation and of the control; on counts their log profiles (`count_inputs`)."""

    names: tuple[str, ...]
    """Sorted; the control is among them."""
    values: np.ndarray
    """`[P+1, G]`, rows as `names`; float32, or float64 where the cells are."""


@dataclass(frozen=True)
class Evaluation:
    """Results of one pair; see the module."""

    results: pl.DataFrame
    failures: pl.DataFrame
    pseudobulk_real: Pseudobulk
    pseudobulk_pred: Pseudobulk
    timings: dict[str, float]
    notes: tuple[str, ...]
    failed: tuple[str, ...] = ()
    """Metrics that could not be computed at all; cell-eval leaves them out of its tables."""
    counts: "CountInputs | None" = None
    """Both tables on one grid, where the metrics are on counts."""
    _real: DESource = None
    _pred: DESource = None

    @cached_property
    def de_real(self) -> pl.DataFrame | None:
        """DE of the real side, pdex's columns."""
        return self._real.frame() if isinstance(self._real, DifferentialExpression) else self._real

    @cached_property
    def de_pred(self) -> pl.DataFrame | None:
        """DE of the predicted side, pdex's columns."""
        return self._pred.frame() if isinstance(self._pred, DifferentialExpression) else self._pred


def evaluate(
    pair: Pair,
    metrics: str | Sequence[str] = "full",
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    de_real: pl.DataFrame | None = None,
    de_pred: pl.DataFrame | None = None,
    cache: Path | None = None,
    threads: int | None = None,
    epsilon: float = 0.0,
    engine: Engine = HOST,
) -> Evaluation:
    """Compute `metrics` (a profile, a name or names) of `pair`.

    `options`: per metric, named as in cell-eval; `de_real`, `de_pred`: DE tables computed elsewhere (pdex's columns);
    `cache`: directory that keeps what depends on the real side alone; `threads`: default all cores; `epsilon`: pdex's pseudocount;
    `engine`: what ranks and distances are computed on.
    A metric that fails is a column of NaN with its reason in `failures`; unknown metrics and options are a `ConfigError`.
    """
    chosen = resolve(metrics)
    settings = resolve_options(chosen, options or {})
    clock = Clock()
    threads = threads or num_cores()
    if chosen[0].scale == "counts":
        return _evaluate_counts(pair, chosen, settings, cache, threads, clock)
    inputs, from_cache = read_inputs(pair, chosen, settings, de_real, de_pred, cache, threads, epsilon, clock, engine)
    values, failures = _values(chosen, settings, inputs, clock)
    results = _table(chosen, values, pair.perturbations)
    failures += _undefined(chosen, values, results)
    return Evaluation(
        results=results,
        failures=pl.DataFrame(failures, schema=FAILURE_SCHEMA),
        pseudobulk_real=Pseudobulk(inputs.real.names, inputs.real.pseudobulk),
        pseudobulk_pred=Pseudobulk(inputs.pred.names, inputs.pred.pseudobulk),
        timings=clock.seconds,
        notes=_notes(pair, from_cache),
        failed=tuple(metric.name for metric in chosen if metric.name not in values),
        _real=inputs.real.de if de_real is None else de_real,
        _pred=inputs.pred.de if de_pred is None else de_pred,
    )


def _evaluate_counts(
    pair: Pair,
    chosen: Sequence[Metric],
    settings: Mapping[str, Mapping[str, Any]],
    cache: Path | None,
    threads: int,
    clock: Clock,
) -> Evaluation:
    from steval.evaluator.metrics.count_evaluation import differential_expression, profiles_by_name, read_count_inputs

    inputs, from_cache = read_count_inputs(pair, cache, threads, clock)
    values, failures = _values(chosen, settings, inputs, clock)
    results = _table(chosen, values, pair.perturbations)
    failures += _undefined(chosen, values, results)
    profiles = profiles_by_name(inputs, pair.control)
    return Evaluation(
        results=results,
        failures=pl.DataFrame(failures, schema=FAILURE_SCHEMA),
        pseudobulk_real=Pseudobulk(*profiles["real"]),
        pseudobulk_pred=Pseudobulk(*profiles["pred"]),
        timings=clock.seconds,
        notes=_notes(pair, from_cache),
        failed=tuple(metric.name for metric in chosen if metric.name not in values),
        counts=inputs,
        _real=differential_expression(inputs.real, inputs),
        _pred=differential_expression(inputs.pred, inputs),
    )


def _values(
    chosen: Sequence[Metric], settings: Mapping[str, Mapping[str, Any]], inputs: Any, clock: Clock
) -> tuple[dict[str, Value], list[dict[str, str | None]]]:
    """The value of each metric, and a row for each that failed."""
    values: dict[str, Value] = {}
    failures: list[dict[str, str | None]] = []
    for metric in chosen:
        with clock.stage(f"metric {metric.name}"):
            try:
                values[metric.name] = metric.function(dict(settings[metric.name]), inputs)
            except METRIC_ERRORS as error:
                failures.append({"perturbation": None, "metric": metric.name, "reason": str(error) or repr(error)})
    for reason in dict.fromkeys(failure["reason"] for failure in failures):
        names = [str(failure["metric"]) for failure in failures if failure["reason"] == reason]
        logger.warning("%s %s failed: %s", "metrics" if len(names) > 1 else "metric", ", ".join(names), reason)
    return values, failures


def _notes(pair: Pair, from_cache: bool) -> tuple[str, ...]:
    return (*pair.notes, *(["the real side came from the cache"] if from_cache else []))


def evaluate_by_cell_type(pair: Pair, metrics: str | Sequence[str] = "full", **arguments: Any) -> dict[str, Evaluation]:
    """`evaluate` for each cell type on its own, as cell-eval's `--celltype-col` does; arguments as there."""
    return {name: evaluate(part, metrics, **arguments) for name, part in pair.by_cell_type().items()}


def resolve_options(chosen: Sequence[Metric], options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options of each chosen metric with defaults; options for a metric that does not exist are a `ConfigError`."""
    for name in options:
        find_metric(name)
    return {metric.name: metric.resolved(dict(options.get(metric.name, {}))) for metric in chosen}


def read_inputs(
    pair: Pair,
    chosen: Sequence[Metric],
    settings: Mapping[str, Mapping[str, Any]],
    de_real: pl.DataFrame | None,
    de_pred: pl.DataFrame | None,
    cache: Path | None,
    threads: int,
    epsilon: float,
    clock: Clock,
    engine: Engine,
) -> tuple[Inputs, bool]:
    """Read both sides once for what the chosen metrics need; says whether the real side came from the cache."""
    wants_de = any(metric.family == "de" for metric in chosen)
    energy = any(_is_plain_energy(metric, settings[metric.name]) for metric in chosen)
    tables: dict[str, SideTables] = {}
    from_cache = False
    with ThreadPoolExecutor(1) as background:
        if cache is not None:
            background.submit(
                pair.real.digest
            )  # what the real side is found by; its errors come again when it is asked for
        for which, given in (("pred", de_pred), ("real", de_real)):
            needs = Needs(de=wants_de and given is None, epsilon=epsilon, energy=energy)
            directory = cache if which == "real" else None
            side = pair.side(which)
            with clock.stage(f"reading {which}"):
                tables[which], hit = cached_scan(
                    directory, side, pair.columns.perturbation, pair.control, pair.genes, needs, threads, engine
                )
            from_cache = from_cache or hit
    comparison = None
    if wants_de:
        with clock.stage("comparing DE"):
            comparison = _comparison(pair, tables, de_real, de_pred)
    return Inputs(pair, tables["pred"], tables["real"], comparison), from_cache


def _comparison(
    pair: Pair, tables: dict[str, SideTables], de_real: pl.DataFrame | None, de_pred: pl.DataFrame | None
) -> DEComparison:
    real = tables["real"].de if de_real is None else de_real
    pred = tables["pred"].de if de_pred is None else de_pred
    assert real is not None
    assert pred is not None
    comparison = compare(real, pred)
    if comparison.perturbations != pair.perturbations:
        different = sorted(set(comparison.perturbations) ^ set(pair.perturbations))
        raise EvaluationError(f"the DE tables and the cells hold different perturbations: {listed(different)}")
    return comparison


def _is_plain_energy(metric: Metric, options: Mapping[str, Any]) -> bool:
    extra = set(options) - {"embed_key", "metric", "n_jobs"}
    return (
        metric.kind == "edistance"
        and not options["embed_key"]
        and options["metric"] in ("euclidean", "l2")
        and not extra
    )


def _table(chosen: Sequence[Metric], values: Mapping[str, Value], perturbations: Sequence[str]) -> pl.DataFrame:
    columns: dict[str, Any] = {"perturbation": list(perturbations)}
    for metric in chosen:
        for column, part in zip(metric.columns, metric.parts or ("",), strict=True):
            value = values.get(metric.name, float("nan"))
            columns[column] = [_cell(value, name, part) for name in perturbations]
    schema = {column: pl.Float64 for column in columns if column != "perturbation"}
    return pl.DataFrame(columns, schema={"perturbation": pl.String, **schema})


def _cell(value: Value, name: str, part: str) -> float | None:
    if not isinstance(value, dict):
        return float(value)
    found = value.get(name)
    if isinstance(found, dict):
        found = found[part]
    return None if found is None else float(found)


def _undefined(
    chosen: Sequence[Metric], values: Mapping[str, Value], results: pl.DataFrame
) -> list[dict[str, str | None]]:
    """A row for each value that is no finite number although its metric did not fail."""
    rows: list[dict[str, str | None]] = []
    for metric in chosen:
        if metric.name not in values:
            continue
        for column in metric.columns:
            is_number = pl.col(column).is_finite().fill_null(False)
            absent = results.filter(~is_number)["perturbation"].to_list()
            if metric.over_all and absent:
                absent = [None]
            rows += [{"perturbation": name, "metric": column, "reason": metric.undefined} for name in absent]
    return rows
