"""`steval compare`: runs or score directories side by side: what differs in the configurations, curves, best steps, metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from steval.data.files import read_bytes, read_json
from steval.data.outputs import real_path
from steval.data.rows.unreadable import first_line
from steval.errors import ConfigError, DataError
from steval.settings import flatten, read_yaml
from steval.workflows.curves import Curves, read_curves
from steval.workflows.symptoms import validation_curve

if TYPE_CHECKING:
    from steval.evaluator.report.report import ScoreReport


@dataclass(frozen=True)
class Comparison:
    """Runs or scores side by side, as Polars frames with a row per thing and a column per run."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    settings: pl.DataFrame
    """Settings that differ: `setting` and a column per run; empty for scores."""
    best: pl.DataFrame
    """Per run: best validation loss, its step, the last step; empty for scores."""
    metrics: pl.DataFrame
    """`metric` and a column per run or score; runs are scored where a score directory lies beside or in them."""
    tests: pl.DataFrame
    """Paired tests of each score against the first; empty with fewer than two scores."""
    curves: tuple[Curves, ...]
    """Of runs."""
    reports: "tuple[ScoreReport, ...]" = ()
    """Of scores."""
    scored: tuple[Path, ...] = ()
    """Score directories that were read: the paths themselves, or those of runs."""


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare run directories, score directories, or a mixture of a kind; a `ConfigError` says what a path lacks."""
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise ConfigError(f"compare needs at least two runs or score directories, got {len(paths)}")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"no such run or score directory: {', '.join(missing)}")
    names = _short_names(paths)
    scores = {name: path for name, path in zip(names, paths, strict=True) if (path / "score.json").is_file()}
    if scores and len(scores) != len(paths):
        other = [str(path) for path in paths if path not in scores.values()]
        raise ConfigError(
            f"compare takes runs or score directories, not both; these are no score directories: {', '.join(other)}"
        )
    if scores:
        empty = pl.DataFrame()
        from steval.evaluator.tables import read_score_dir

        reports = tuple(read_score_dir(directory) for directory in scores.values())
        return Comparison(
            names, tuple(paths), empty, empty, _score_metrics(scores), _paired_tests(scores), (), reports, tuple(paths)
        )
    curves = tuple(read_curves(path) for path in paths)
    found = {name: directory for name, path in zip(names, paths, strict=True) if (directory := _score_of_run(path))}
    metrics = _score_metrics(found) if found else pl.DataFrame()
    tests = _paired_tests(found) if len(found) > 1 else pl.DataFrame()
    differences, best = _differences(names, paths), _best(names, curves)
    return Comparison(names, tuple(paths), differences, best, metrics, tests, curves, scored=tuple(found.values()))


def _short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The last part of each path, longer where that is not unique."""
    for depth in range(1, 20):
        names = ["/".join(real_path(path).parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    raise ConfigError(f"the same path is given twice: {', '.join(map(str, paths))}")


def _differences(names: Sequence[str], paths: Sequence[Path]) -> pl.DataFrame:
    flat = [
        {key: json.dumps(value) for key, value in flatten(read_yaml(path / "config.yaml")).items()}
        if (path / "config.yaml").is_file()
        else {}
        for path in paths
    ]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(settings.get(key, "–") for settings in flat)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return pl.DataFrame(differing, schema=dict.fromkeys(["setting", *names], pl.String), orient="row")


def _best(names: Sequence[str], curves: Sequence[Curves]) -> pl.DataFrame:
    rows = []
    for name, run in zip(names, curves, strict=True):
        curve = validation_curve(run)
        if curve is None:
            rows.append((name, None, None, None, int(run.frame["step"].to_numpy().max())))
            continue
        best = int(curve.values.argmin())
        rows.append((name, curve.name, float(curve.values[best]), int(curve.steps[best]), int(curve.steps[-1])))
    schema = {"run": pl.String, "metric": pl.String, "best": pl.Float64, "at step": pl.Int64, "last step": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _score_of_run(path: Path) -> Path | None:
    """The newest score directory in the run, or beside it made from its best checkpoint."""
    candidates = [*path.rglob("score.json"), *path.parent.glob("*.score/score.json")]
    best = path / "checkpoints" / "best-val.safetensors"
    for candidate in sorted(candidates, key=lambda file: file.stat().st_mtime, reverse=True):
        if path in candidate.parents or _scored_checkpoint(candidate) == str(real_path(best)):
            return candidate.parent
    return None


def _scored_checkpoint(score_json: Path) -> str | None:
    """The checkpoint that a score says it is of; None where it does not say, or cannot be read."""
    try:
        record = read_json(score_json, "summary of a score")
        model = (record.get("record") or record).get("model") or {}
    except (DataError, AttributeError):
        return None
    return model.get("checkpoint") if isinstance(model, dict) else None


def _score_metrics(directories: Mapping[str, Path]) -> pl.DataFrame:
    frames = []
    for name, directory in directories.items():
        place = directory / "breakdown.csv"
        try:
            table = pl.read_csv(read_bytes(place, "table of metrics"), infer_schema_length=None)
            frames.append(table.select("metric", pl.col("value").cast(pl.Float64, strict=False).alias(name)))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{place} is damaged and cannot be read: {first_line(error)}") from error
    joined = frames[0]
    for frame in frames[1:]:
        joined = joined.join(frame, on="metric", how="full", coalesce=True)
    return joined


def _paired_tests(directories: Mapping[str, Path]) -> pl.DataFrame:
    from steval.evaluator.comparison import compare_scores

    (first_name, first), *others = directories.items()
    frames = [
        compare_scores(first, directory).with_columns(pl.lit(f"{name} − {first_name}").alias("comparison"))
        for name, directory in others
    ]
    return pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
