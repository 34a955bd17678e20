"""The score directory: written whole or not at all, and read back.

Beside the files that docs/architecture.md names (`results.parquet`, `results.csv`, `breakdown.csv`, `score.json`,
`integrity.csv`, `report.html`) it holds
what a comparison or a new drawing of the report needs; `docs/scoring.md` has the schema of each table.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from steval.data.files import partial_beside, read_json, require_directory
from steval.data.outputs import require_output_directory
from steval.errors import ConfigError, DataError
from steval.evaluator.report.report import PREDICTION, ScoreReport
from steval.evaluator.report.standing import standing
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
from steval.evaluator.spreadsheet import read_csv, write_csv

logger = logging.getLogger(__name__)

FORMAT = 1
SCORE_FILE = "score.json"
REPORT_FILE = "report.html"
CSV_TABLES: dict[str, dict[str, Any]] = {
    "breakdown": BREAKDOWN_SCHEMA,
    "overall": OVERALL_SCHEMA,
    "baselines": BASELINES_SCHEMA,
    "integrity": INTEGRITY_SCHEMA,
    "intervals": INTERVALS_SCHEMA,
    "failures": FAILURES_SCHEMA,
    "de_counts": DE_COUNTS_SCHEMA,
}
PARQUET_TABLES = ("results", "baseline_results", "changes")


def write_score_dir(report: ScoreReport, directory: Path | str) -> Path:
    """Write all tables, `score.json` and `report.html` to `directory`; returns it.

    Everything is written to a directory beside it, which then takes its place: a killed run or a full disk leaves the old
    score directory, or none, never a part. A directory that holds anything but a score is not replaced (`ConfigError`).
    """
    from steval.evaluator.report.html import render_report

    given, directory = Path(directory), require_output_directory(Path(directory), {})
    require_replaceable(directory)
    require_directory(directory.parent)
    partial = partial_beside(directory)
    try:
        partial.mkdir()
        for name in PARQUET_TABLES:
            getattr(report, name).write_parquet(partial / f"{name}.parquet")
        write_csv(report.results, partial / "results.csv")
        for name in CSV_TABLES:
            write_csv(getattr(report, name), partial / f"{name}.csv")
        notes: list[str] = []
        page = render_report(report, notes)
        text = json.dumps(score_summary(report, notes), indent=2, allow_nan=False)
        (partial / SCORE_FILE).write_text(text + "\n", encoding="utf-8")
        (partial / REPORT_FILE).write_text(page, encoding="utf-8", errors="backslashreplace")
        _sync(partial)
        _take_place(partial, directory)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"cannot write the score directory {directory}: {getattr(error, 'strerror', None) or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for note in notes:
        logger.warning("%s", note)
    return given


def read_score_dir(directory: Path | str) -> ScoreReport:
    """The report that `write_score_dir` wrote; anything else is a `DataError`."""
    directory = Path(directory)
    if not (directory / SCORE_FILE).is_file():
        raise DataError(f"{directory} is not a score directory: it has no {SCORE_FILE} (steval score -o writes one)")
    try:
        summary = read_json(directory / SCORE_FILE, "summary of a score")
        if summary["format"] != FORMAT:
            raise DataError(f"{directory} has format {summary['format']}; this version of steval reads format {FORMAT}")
        frames = {name: _read_parquet(directory / f"{name}.parquet") for name in PARQUET_TABLES}
        frames |= {name: read_csv(directory / f"{name}.csv", schema) for name, schema in CSV_TABLES.items()}
        _require_columns(frames)
        record = dict(summary["record"])
        _ = record["inputs"]["real"]["sha256"], record["options"]["by"]  # what tells whether two can be compared
        return ScoreReport(**frames, record=record)
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DataError(f"{directory} is damaged and cannot be read: {error}") from error


def _require_columns(frames: Mapping[str, pl.DataFrame]) -> None:
    """A `ValueError` where a table lacks what every reader takes from it."""
    if frames["changes"].schema != pl.Schema(CHANGES_SCHEMA):
        raise ValueError(f"the columns of changes.parquet are {dict(frames['changes'].schema)}")
    metrics = frames["breakdown"]["metric"].unique().to_list()
    labels = {"results": ("cell_type", "perturbation"), "baseline_results": ("cell_type", "perturbation", "baseline")}
    for name, needed in labels.items():
        schema = frames[name].schema
        numbers = [metric for metric in metrics if metric in schema and schema[metric].is_numeric()]
        if frames[name].height and (not set(needed) <= set(schema) or len(numbers) < len(metrics)):
            raise ValueError(f"{name}.parquet lacks columns, or they hold no numbers: {dict(schema)}")


def _read_parquet(path: Path) -> pl.DataFrame:
    """Through Arrow, which tells damage by errors where Polars' own reader panics; names are never patterns."""
    table = pq.read_table(pa.BufferReader(path.read_bytes()), use_threads=False)
    table.validate(full=True)
    return pl.DataFrame(pl.from_arrow(table.replace_schema_metadata(None)))


def score_summary(report: ScoreReport, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What `score.json` holds: overall scores, members and the record, as plain JSON (NaN and infinity become null)."""
    overall = report.overall.filter(pl.col("predictor") == PREDICTION)
    headline = overall.row(0, named=True) if not overall.is_empty() else dict.fromkeys(OVERALL_SCHEMA)
    summary = {
        "format": FORMAT,
        "overall": headline["overall"],
        "leaderboard": headline["leaderboard"],
        "unclipped": headline["unclipped"],
        "interval": [headline["overall_low"], headline["overall_high"]],
        "standing": standing(report).as_dict(),
        "members": report.members.drop("note").to_dicts(),
        "baselines": report.overall.filter(pl.col("predictor") != PREDICTION).to_dicts(),
        "integrity": {
            status: report.integrity["status"].to_list().count(status) for status in ("ok", "note", "warn", "fail")
        },
        "findings": report.findings.to_dicts(),
        "warnings": [*report.record["warnings"], *notes],
        "record": report.record,
    }
    return _json_numbers(summary)


def _json_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_numbers(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def require_replaceable(directory: Path) -> None:
    """A `ConfigError` where a score cannot go: a file, or a directory that holds something else."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file; a score is written to a directory")
    if any(directory.iterdir()) and not (directory / SCORE_FILE).is_file():
        raise ConfigError(f"{directory} is not empty and holds no score, so it is not replaced; name another directory")


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _take_place(partial: Path, directory: Path) -> None:
    """Rename `partial` to `directory`; what was there goes only after the new one is in place."""
    if not directory.exists():
        partial.rename(directory)
        return
    old = directory.with_name(f".{directory.name}.{os.getpid()}-{secrets.token_hex(4)}.old")
    directory.rename(old)
    try:
        partial.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


assert set(CSV_TABLES) | set(PARQUET_TABLES) | {"record"} == {item.name for item in fields(ScoreReport)}
