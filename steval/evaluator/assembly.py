"""From computed pairs to the frames of a `ScoreReport`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from steval import __version__
from steval.evaluator.attempt import attempt
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.changes import de_counts, shown_changes
from steval.evaluator.metrics.evaluation import Evaluation
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.baselines import REFERENCE
from steval.evaluator.reference.bootstrap import replicate_intervals, score_intervals
from steval.evaluator.report.report import PREDICTION, ScoreReport, finite_or_none
from steval.evaluator.schemas import (
    BASELINES_SCHEMA,
    BREAKDOWN_SCHEMA,
    CHANGES_SCHEMA,
    DE_COUNTS_SCHEMA,
    FAILURES_SCHEMA,
    INTEGRITY_SCHEMA,
    INTERVALS_SCHEMA,
    OVERALL_SCHEMA,
)
from steval.evaluator.stages import PairScore, ScoreWork
from steval.machine import package_versions
from steval.wording import counted

PACKAGES = ("cell-eval", "pdex", "anndata", "numpy", "scipy", "polars", "numba", "scikit-learn")
NO_TRAINING = (
    "no training cells were given, so there is no baseline: the normalised columns and the overall score are empty. Give "
    "the cells that the model was trained on with --train FILE.h5ad, or score with the checkpoint that records them"
)
NO_SIMPLE_MODELS = (
    "no training cells were given, so no simple models stand beside the score: give the cells that the model was trained on "
    "(counts) with --train FILE.h5ad"
)
Parts = Mapping[str | None, PairScore]


def assemble(work: ScoreWork, parts: Parts, pair: Pair, model_record: dict[str, Any] | None) -> ScoreReport:
    """The report of the scored `parts` (cell type → pair; the single key None unless made by cell type)."""
    warnings = [warning for name, part in parts.items() for warning in _of_part(name, part.warnings)]
    intervals = {name: _intervals(work, part, warnings) for name, part in parts.items()}
    changes = attempt("the table of changes", lambda: _changes(parts), pl.DataFrame(schema=CHANGES_SCHEMA), warnings)
    empty = pl.DataFrame(schema=DE_COUNTS_SCHEMA)
    counts = attempt("the table of significant genes", lambda: _de_counts(parts), empty, warnings)
    overall = pl.concat([_overall(work, name, part, intervals[name]) for name, part in parts.items()])
    return ScoreReport(
        results=_tagged({name: _plain(part.evaluation.results) for name, part in parts.items()}),
        breakdown=pl.concat([_breakdown(work, name, part, intervals[name]) for name, part in parts.items()]),
        overall=_with_mean(overall) if None not in parts else overall,
        baselines=pl.concat([_baselines(work, name, part) for name, part in parts.items()]),
        baseline_results=_baseline_results(parts),
        integrity=_integrity(parts),
        intervals=_framed(intervals, INTERVALS_SCHEMA),
        failures=_framed({name: part.evaluation.failures for name, part in parts.items()}, FAILURES_SCHEMA),
        changes=changes,
        de_counts=counts,
        record=_record(work, parts, pair, model_record, warnings),
    )


def _of_part(name: str | None, warnings: Sequence[str]) -> list[str]:
    return list(warnings) if name is None else [f"{name}: {warning}" for warning in warnings]


def _changes(parts: Parts) -> pl.DataFrame:
    shown = {name: shown_changes(part.pair, part.evaluation) for name, part in parts.items()}
    return _framed(shown, CHANGES_SCHEMA)


def _de_counts(parts: Parts) -> pl.DataFrame:
    return _framed({name: de_counts(part.evaluation) for name, part in parts.items()}, DE_COUNTS_SCHEMA)


def _intervals(work: ScoreWork, part: PairScore, warnings: list[str]) -> pl.DataFrame:
    settings, reference = work.settings, part.baselines.get(REFERENCE)

    def make(draws: int) -> pl.DataFrame:
        if work.on_counts:
            results, columns = part.evaluation.results, list(work.columns.values())
            return replicate_intervals(results, part.scale, columns, draws, settings.seed)
        return score_intervals(
            part.evaluation.results,
            None if reference is None else reference.results,
            list(work.columns),
            list(work.best(part.evaluation).values()),
            draws,
            settings.seed,
        )

    draws = 0 if settings.metrics_only else settings.bootstrap
    return attempt("the table of intervals", lambda: make(draws), make(0), warnings)


def _breakdown(work: ScoreWork, name: str | None, part: PairScore, intervals: pl.DataFrame) -> pl.DataFrame:
    table, _ = work.overall(part.evaluation, part.reference)
    columns = work.columns
    best, rows = work.best(part.evaluation), []
    for row in table.iter_rows(named=True):
        metric = row["metric"]
        ceiling = part.ceiling
        missing = _num_without_value(part.evaluation.results, metric)
        rows.append(
            {
                **row,
                "cell_type": name,
                "family": columns[metric].family,
                "best": best[metric],
                "ceiling": finite_or_none(ceiling.corrected[metric]) if ceiling else None,
                "replicate": part.scale.replicate.get(metric)
                if part.scale
                else finite_or_none(ceiling.replicate[metric])
                if ceiling
                else None,
                "num_perturbations": part.evaluation.results.height,
                "num_without_value": missing,
                "note": _note(row, missing, part.evaluation),
                **_bounds(intervals, metric),
            }
        )
    return pl.DataFrame(rows, schema=BREAKDOWN_SCHEMA)


def _bounds(intervals: pl.DataFrame, metric: str) -> dict[str, float | None]:
    found = {}
    for quantity, _, low, high, _ in intervals.filter(pl.col("metric") == metric).iter_rows():
        found[f"{quantity}_low"], found[f"{quantity}_high"] = low, high
    return found


def _num_without_value(results: pl.DataFrame, metric: str) -> int:
    if metric not in results.columns:
        return results.height
    return int((~results[metric].cast(pl.Float64).is_finite().fill_null(False)).sum())


def _note(row: Mapping[str, Any], missing: int, evaluation: Evaluation) -> str | None:
    """Why a row is not what it seems: perturbations without a value, members that count as 0 because undefined."""
    value, unclipped = row["value"], row["unclipped"]
    defined = value is not None and np.isfinite(value)
    failures, parts = evaluation.failures, []
    reasons = failures.filter(pl.col("metric") == row["metric"])["reason"].unique(maintain_order=True).to_list()
    if row["metric"] in evaluation.failed:
        return "; ".join(["could not be computed, so it is no member of the score", *reasons])
    if missing:
        on_counts = evaluation.counts is not None
        counts = "as the worst there is" if on_counts else "as 0"
        effect = "left out of the mean" if defined else f"so the mean is undefined and counts {counts}"
        parts = [f"{counted(missing, 'perturbation has', 'perturbations have')} no value, {effect}", *reasons[:2]]
    if defined and unclipped is not None and not np.isfinite(unclipped):
        parts.append("the baseline's mean is undefined or already the best value, so the member counts as 0")
    return "; ".join(parts) or None


def _overall(work: ScoreWork, name: str | None, part: PairScore, intervals: pl.DataFrame) -> pl.DataFrame:
    reference = part.reference
    if reference is None:
        return pl.DataFrame(schema=OVERALL_SCHEMA)
    rows = []
    for predictor, evaluation in {PREDICTION: part.evaluation, **part.baselines}.items():
        _, total = work.overall(evaluation, reference)
        bounds = _bounds(intervals, "overall") if predictor == PREDICTION else {}
        rows.append(
            {
                "cell_type": name,
                "predictor": predictor,
                "overall": finite_or_none(total.clipped),
                "leaderboard": finite_or_none(total.leaderboard),
                "unclipped": finite_or_none(total.unclipped),
                "overall_low": bounds.get("normalised_low"),
                "overall_high": bounds.get("normalised_high"),
                "unclipped_low": bounds.get("unclipped_low"),
                "unclipped_high": bounds.get("unclipped_high"),
            }
        )
    return pl.DataFrame(rows, schema=OVERALL_SCHEMA)


def _with_mean(overall: pl.DataFrame) -> pl.DataFrame:
    """The mean over cell types in front, cell type null; it has no interval."""
    if overall.is_empty():
        return overall
    mean = overall.group_by("predictor", maintain_order=True).agg(pl.col("overall", "leaderboard", "unclipped").mean())
    return pl.concat([mean, overall], how="diagonal").select(list(OVERALL_SCHEMA))


def _baselines(work: ScoreWork, name: str | None, part: PairScore) -> pl.DataFrame:
    reference = part.reference
    tables = [pl.DataFrame(schema=BASELINES_SCHEMA)]
    for kind, evaluation in part.baselines.items():
        table, _ = work.overall(evaluation, reference)
        table = table.drop("baseline").with_columns(
            pl.lit(kind).alias("baseline"), pl.lit(name, dtype=pl.String).alias("cell_type")
        )
        tables.append(table.select(list(BASELINES_SCHEMA)))
    return pl.concat(tables)


def _baseline_results(parts: Parts) -> pl.DataFrame:
    tables = {
        (name, kind): _plain(evaluation.results)
        for name, part in parts.items()
        for kind, evaluation in part.baselines.items()
    }
    frames = [
        frame.select(pl.lit(name, dtype=pl.String).alias("cell_type"), pl.lit(kind).alias("baseline"), pl.all())
        for (name, kind), frame in tables.items()
    ]
    empty = pl.DataFrame(schema={"cell_type": pl.String, "baseline": pl.String, "perturbation": pl.String})
    return pl.concat(frames, how="diagonal") if frames else empty


def _integrity(parts: Parts) -> pl.DataFrame:
    rows = [
        (name, check, found.status, found.measurement, found.limit, found.sentence)
        for name, part in parts.items()
        for check, found in part.checks.items()
    ]
    return pl.DataFrame(rows, schema=INTEGRITY_SCHEMA, orient="row")


def _plain(results: pl.DataFrame) -> pl.DataFrame:
    """Perturbations as text, every metric as float64."""
    return results.select(
        pl.col("perturbation").cast(pl.String),
        *(pl.col(c).cast(pl.Float64) for c in results.columns if c != "perturbation"),
    )


def _tagged(frames: Mapping[str | None, pl.DataFrame]) -> pl.DataFrame:
    tagged = [
        frame.select(pl.lit(name, dtype=pl.String).alias("cell_type"), pl.all()) for name, frame in frames.items()
    ]
    return pl.concat(tagged, how="diagonal")


def _framed(frames: Mapping[str | None, pl.DataFrame], schema: dict[str, Any]) -> pl.DataFrame:
    return _tagged(frames).select([pl.col(name).cast(kind) for name, kind in schema.items()])


def _record(
    work: ScoreWork, parts: Parts, pair: Pair, model_record: dict[str, Any] | None, warnings: list[str]
) -> dict[str, Any]:
    if work.training is None and not work.settings.metrics_only:
        warnings = [NO_SIMPLE_MODELS if work.on_counts else NO_TRAINING, *warnings]
    notes = [
        *pair.notes,
        *(note for part in parts.values() for note in part.evaluation.notes if note not in pair.notes),
    ]
    return {
        "steval": __version__,
        "versions": package_versions(PACKAGES),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {
            **work.settings.record([metric.name for metric in resolve(work.settings.chosen)]),
            "threads": work.threads,
        },
        "seed": work.settings.seed,
        "columns": pair.columns.as_dict(),
        "inputs": _inputs(work, pair),
        "warnings": list(dict.fromkeys(warnings)),
        "notes": list(dict.fromkeys([*notes, *(work.training.notes if work.training else ())])),
        "timings": work.clock.table(),
        "metric_timings": {str(name or "all"): part.evaluation.timings for name, part in parts.items()},
        "model": model_record,
    }


def _inputs(work: ScoreWork, pair: Pair) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for role, side, scale in (("pred", pair.stored_pred, pair.scale_pred), ("real", pair.real, pair.scale_real)):
        described[role] = {
            "name": side.file.name,
            "sha256": side.digest(),
            "cells": side.num_cells,
            "genes": len(pair.genes),
            "perturbations": len(pair.perturbations),
            "scale": scale.describe(),
        }
    if work.training is not None:
        training = work.training
        described["train"] = {
            "name": training.cells.name,
            "sha256": training.digest,
            "cells": training.num_cells,
            "perturbations": len(training.effects),
        }
    return described
