"""`steval compare`: runs or score directories side by side: what differs in the configurations, curves, best steps, metrics."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from steval.data.files import atomic_path, read_text
from steval.data.outputs import real_path, require_output
from steval.errors import ConfigError, DataError
from steval.settings import flatten, read_yaml
from steval.workflows.curves import Curves, read_curves
from steval.workflows.symptoms import validation_curve

PLOTTED = ("train/total", "val/gene", "val/embedding", "eval/mae", "eval/overlap_at_N", "eval/discrimination_score_l1")


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


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare run directories, score directories, or a mixture of a kind; a `ConfigError` says what a path lacks."""
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise ConfigError(f"compare needs at least two runs or score directories, got {len(paths)}")
    names = _short_names(paths)
    scores = {name: path for name, path in zip(names, paths, strict=True) if (path / "score.json").is_file()}
    if scores and len(scores) != len(paths):
        other = [str(path) for path in paths if path not in scores.values()]
        raise ConfigError(
            f"compare takes runs or score directories, not both; these are no score directories: {', '.join(other)}"
        )
    if scores:
        empty = pl.DataFrame()
        return Comparison(names, tuple(paths), empty, empty, _score_metrics(scores), _paired_tests(scores), ())
    curves = tuple(read_curves(path) for path in paths)
    found = {name: directory for name, path in zip(names, paths, strict=True) if (directory := _score_of_run(path))}
    metrics = _score_metrics(found) if found else pl.DataFrame()
    tests = _paired_tests(found) if len(found) > 1 else pl.DataFrame()
    return Comparison(names, tuple(paths), _differences(names, paths), _best(names, curves), metrics, tests, curves)


def plot_curves(comparison: Comparison) -> bytes:
    """The curves of all runs overlaid, one panel per metric, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in PLOTTED if any(curves.get(name) is not None for curves in comparison.curves)]
    if not shown:
        raise ConfigError(f"no run has any of the curves {', '.join(PLOTTED)}")
    figure = Figure(figsize=(6.4, 2.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for panel, metric in zip(panels, shown, strict=True):
        for name, curves in zip(comparison.names, comparison.curves, strict=True):
            curve = curves.get(metric)
            if curve is not None:
                panel.plot(curve.steps, curve.values, label=name, linewidth=1.4)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("optimiser step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write `.html` (tables and curves in one file) or `.png` (curves alone), atomically; never over a file that was compared."""
    compared = {f"the report of {place}": place / "report.html" for place in comparison.paths}
    require_output(path, compared, suffixes=(".html", ".png"))
    content = plot_curves(comparison) if path.suffix == ".png" else _html(comparison).encode()
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return path


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
        record = json.loads(read_text(score_json))
        model = (record.get("record") or record).get("model") or {}
    except (DataError, ValueError, AttributeError):
        return None
    return model.get("checkpoint") if isinstance(model, dict) else None


def _score_metrics(directories: Mapping[str, Path]) -> pl.DataFrame:
    frames = []
    for name, directory in directories.items():
        table = pl.read_csv((directory / "breakdown.csv").read_bytes(), infer_schema_length=None)
        frames.append(table.select("metric", pl.col("value").cast(pl.Float64, strict=False).alias(name)))
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


def _html(comparison: Comparison) -> str:
    from jinja2 import Environment

    frames = [
        (title, frame)
        for title, frame in (
            ("Best checkpoints", comparison.best), ("Metrics", comparison.metrics), ("Paired tests", comparison.tests),
            ("Settings that differ", comparison.settings),
        )
        if frame.height
    ]  # fmt: skip
    image = base64.b64encode(plot_curves(comparison)).decode() if comparison.curves else None
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(names=comparison.names, frames=frames, image=image)


_TEMPLATE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>steval compare</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 2rem; } th, td { padding: .25rem .8rem; text-align: left; }
th { border-bottom: 2px solid; } td { border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
img { max-width: 100%; background: #fff; }
</style>
<h1>{{ names | join(" · ") }}</h1>
{% if image %}<img alt="Curves of all runs" src="data:image/png;base64,{{ image }}">{% endif %}
{% for title, frame in frames %}<h2>{{ title }}</h2><table><tr>{% for name in frame.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in frame.rows() %}<tr>{% for value in row -%}
<td>{% if value is float %}{{ "%.4g" | format(value) }}{% else %}{{ "–" if value is none else value }}{% endif %}</td>
{%- endfor %}</tr>{% endfor %}</table>{% endfor %}
</html>
"""
