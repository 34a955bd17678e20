"""One table over all jobs: scores with intervals, integrity flags, and the errors of those that failed."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from steval.batch.jobs import Job, read_json
from steval.batch.plan import BatchPlan
from steval.batch.results import error_of, is_whole, score_of
from steval.data.files import atomic_path
from steval.wording import counted

NAME = "leaderboard"
TEMPLATE = Path(__file__).parent / "leaderboard.html.j2"
SCHEMA: dict[str, Any] = {
    "rank": pl.Int64,
    "rank_in_data": pl.Int64,
    "checkpoint": pl.String,
    "data": pl.String,
    "request": pl.String,
    "state": pl.String,
    "overall": pl.Float64,
    "overall_low": pl.Float64,
    "overall_high": pl.Float64,
    "leaderboard": pl.Float64,
    "unclipped": pl.Float64,
    "unclipped_low": pl.Float64,
    "unclipped_high": pl.Float64,
    "simple_model": pl.String,
    "simple_leaderboard": pl.Float64,
    "above_simple": pl.Float64,
    "above_simple_low": pl.Float64,
    "above_simple_high": pl.Float64,
    "integrity_fail": pl.Int64,
    "integrity_warn": pl.Int64,
    "flags": pl.String,
    "num_perturbations": pl.Int64,
    "num_cells": pl.Int64,
    "directory": pl.String,
    "error": pl.String,
}
"""Columns of every leaderboard; `METRIC`, `METRIC_low` and `METRIC_high` follow for each metric that was scored."""


def build_leaderboard(plan: BatchPlan) -> pl.DataFrame:
    """A row for each job of the plan, best overall score first, failed ones last; made of the result directories alone.

    `state` is scored, predicted, failed or missing; intervals are 95 % over perturbations.
    """
    from steval.evaluator.tables import read_score_dir

    rows = [_row(plan, job, read_score_dir) for job in plan.jobs]
    frame = (
        pl.DataFrame(rows, schema_overrides=SCHEMA, infer_schema_length=None) if rows else pl.DataFrame(schema=SCHEMA)
    )
    metrics = [name for name in frame.columns if name not in SCHEMA]
    order = {"scored": 0, "predicted": 1, "missing": 2, "failed": 3}
    frame = frame.sort(
        pl.col("state").replace_strict(order, return_dtype=pl.Int64),
        *(-pl.col(name) for name in ("overall", "unclipped")),
        "data",
        "checkpoint",
        "request",
        nulls_last=True,
    )
    ranked = pl.col("overall").is_not_null()
    return frame.with_columns(
        rank=pl.when(ranked).then(pl.col("overall").rank("min", descending=True)).cast(pl.Int64),
        rank_in_data=pl.when(ranked).then(pl.col("overall").rank("min", descending=True).over("data")).cast(pl.Int64),
    ).select([*SCHEMA, *metrics])


def write_leaderboard(plan: BatchPlan, frame: pl.DataFrame, name: str = NAME) -> Path:
    """Write `NAME.parquet`, `.csv` and `.html` to the batch's directory; returns the HTML file."""
    from steval.evaluator.spreadsheet import write_csv

    root = plan.layout.root
    with atomic_path(root / f"{name}.parquet") as partial:
        frame.write_parquet(partial)
    with atomic_path(root / f"{name}.csv") as partial:
        write_csv(frame, partial)
    with atomic_path(root / f"{name}.html") as partial:
        partial.write_text(render(frame), encoding="utf-8")
    return root / f"{name}.html"


def render(frame: pl.DataFrame) -> str:
    """The leaderboard as one HTML page with nothing to fetch."""
    import jinja2

    from steval.evaluator.metrics.catalog import with_arrow
    from steval.evaluator.report.html import TEMPLATES

    loader = jinja2.FileSystemLoader([TEMPLATE.parent, TEMPLATES])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["counted"] = counted
    environment.filters["arrow"] = with_arrow
    template = environment.get_template(TEMPLATE.name)
    metrics = [name for name in frame.columns if name not in SCHEMA and not name.endswith(("_low", "_high"))]
    data = frame["data"].unique(maintain_order=True).sort().to_list()
    requests = frame["request"].unique().sort().to_list()
    return template.render(rows=frame.to_dicts(), metrics=metrics, data=data, grids=_grids(frame, requests, data))


def remove_work(plan: BatchPlan) -> None:
    """Remove parts and shared tables once every job is whole, and nothing else that lies beside them."""
    work = plan.layout.work
    for path in work.iterdir() if work.is_dir() else ():
        if plan.layout.is_part(path):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def _grids(frame: pl.DataFrame, requests: list[str], data: list[str]) -> list[dict[str, Any]]:
    """For each request, checkpoints × data sets of overall scores, and the mean of those that have all."""
    grids = []
    for request in requests:
        part = frame.filter((pl.col("request") == request) & pl.col("overall").is_not_null())
        values = {(row["checkpoint"], row["data"]): row["overall"] for row in part.iter_rows(named=True)}
        lines: list[dict[str, Any]] = []
        for name in sorted({checkpoint for checkpoint, _ in values}):
            found = [values.get((name, one)) for one in data]
            numbers = [value for value in found if value is not None]
            mean = sum(numbers) / len(numbers) if len(numbers) == len(data) else None
            lines.append({"checkpoint": name, "values": found, "mean": mean})
        lines.sort(key=lambda line: (line["mean"] is None, -(line["mean"] or 0.0), line["checkpoint"]))
        grids.append({"request": request, "lines": lines})
    return [grid for grid in grids if grid["lines"] and len(data) > 1]


def _row(plan: BatchPlan, job: Job, read_score_dir: Any) -> dict[str, Any]:
    directory = plan.layout.directory(job)
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row |= {
        "checkpoint": job.checkpoint_name,
        "data": job.data_name,
        "request": job.request_name,
        "num_perturbations": len(job.perturbations),
        "num_cells": job.num_cells,
        "directory": str(directory.relative_to(plan.layout.root)),
    }
    if not is_whole(plan.layout, job):
        error = error_of(plan.layout, job)
        return row | {"state": "missing" if error is None else "failed", "error": error}
    score = score_of(plan.layout, job)
    if score is None:
        return row | {"state": "predicted"}
    from steval.evaluator.report.standing import standing

    report = read_score_dir(score)
    summary = read_json(score / "score.json") or {}
    low, high = summary["interval"]
    headline = report.overall.filter(pl.col("predictor") == "prediction").head(1).to_dicts()
    bounds = headline[0] if headline else {}
    findings, stands = report.findings, standing(report)
    row |= {
        "state": "scored",
        "overall": summary["overall"],
        "overall_low": low,
        "overall_high": high,
        "leaderboard": summary["leaderboard"],
        "unclipped": summary["unclipped"],
        "unclipped_low": bounds.get("unclipped_low"),
        "unclipped_high": bounds.get("unclipped_high"),
        "simple_model": stands.simple_model,
        "simple_leaderboard": stands.simple_score,
        "above_simple": stands.difference,
        "above_simple_low": stands.low,
        "above_simple_high": stands.high,
        "integrity_fail": summary["integrity"]["fail"],
        "integrity_warn": summary["integrity"]["warn"],
        "flags": "; ".join(
            dict.fromkeys(f"{check} ({status})" for check, status in findings.select("check", "status").rows())
        ),
        "num_perturbations": report.results["perturbation"].n_unique(),
    }
    return row | _metrics(report.breakdown)


def _metrics(breakdown: pl.DataFrame) -> dict[str, float | None]:
    """Value and interval of each metric; of several cell types, the mean value without an interval."""
    values: dict[str, float | None] = {}
    for metric in breakdown["metric"].unique(maintain_order=True):
        rows = breakdown.filter(pl.col("metric") == metric)
        mean = rows["value"].mean()
        values[metric] = float(mean) if isinstance(mean, int | float) else None
        for bound in ("low", "high"):
            values[f"{metric}_{bound}"] = rows[f"value_{bound}"][0] if rows.height == 1 else None
    return values


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
