"""`steval score`."""

from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.memory import importing
from steval.cli.output import print_json, print_table, say, say_wrapped
from steval.evaluator.metrics.profiles import takers
from steval.wording import counted

if TYPE_CHECKING:
    import polars as pl

    from steval.evaluator.report.report import ScoreReport

SHOWN_PERTURBATIONS = 30
BREAKDOWN = ("cell_type", "metric", "value", "baseline", "ceiling", "replicate", "normalised", "unclipped")


def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[CKPT] PREDS", help="The checkpoint (optional) and the predicted cells.", show_default=False
        ),
    ],
    real: Annotated[
        Path | None, typer.Option("--real", help="Real cells.", show_default="the checkpoint's evaluation data")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train", help="Training cells, for the baselines.", show_default="the checkpoint's training data"
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help=f"{takers('lognorm')}; on counts: {takers('counts')}.")
    ] = "vcc",
    metrics: Annotated[str | None, typer.Option("--metrics", help="Metric names A,B,C in place of a profile.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Score directory.", show_default="PREDS.score beside PREDS")
    ] = None,
    adapter: options.Adapter = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict", help="If PREDS does not exist, let CKPT predict the real data's perturbations into it first."
        ),
    ] = False,
    metrics_only: Annotated[
        bool, typer.Option("--metrics-only", help="The bare evaluation: no baselines, no checks.")
    ] = False,
    ceiling: Annotated[
        bool, typer.Option("--ceiling", help="Add the replicate ceiling (scores halves of the real cells).")
    ] = False,
    integrity: Annotated[
        str, typer.Option("--integrity", help="basic, or full: also the checks that score again.")
    ] = "basic",
    by: Annotated[
        str | None,
        typer.Option("--by", help="Score each cell_type or context apart; the headline is their mean."),
    ] = None,
    only_common: Annotated[
        bool, typer.Option("--only-common", help="Score the perturbations that both sides have; say what is left out.")
    ] = False,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples of the perturbations for intervals.")
    ] = 1000,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", envvar="STEVAL_CACHE_DIR", help="Keep what depends on the real side alone here."),
    ] = None,
    seed: options.Seed = 0,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    batch_col: options.BatchCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    scale: options.ScaleOption = None,
    data_dir: options.DataDirs = None,
    threads: options.Threads = None,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    json: options.JsonFlag = False,
) -> None:
    """Score predicted cells with cell-eval's metrics, against baselines, perturbation by perturbation.

    Example: `steval score best-val.safetensors preds.h5ad` or `steval score preds.h5ad --real real.h5ad --train train.h5ad`
    """
    with importing():
        from steval.evaluator.settings import ScoreSettings
        from steval.workflows.score import ScoreRequest, data_directories, parse_metrics, score_predictions

    if len(paths) > 2:
        raise typer.BadParameter(f"takes [CKPT] PREDS, got {counted(len(paths), 'path')}")
    if integrity not in ("basic", "full"):
        raise typer.BadParameter(f"basic or full, got {integrity!r}", param_hint="--integrity")
    report, directory = score_predictions(
        ScoreRequest(
            preds=paths[-1],
            checkpoint=paths[0] if len(paths) == 2 else None,
            real=real,
            train=train,
            out=out,
            adapter=adapter,
            predict=predict,
            only_common=only_common,
            columns=options.column_options(pert_col, control, cell_type_col, batch_col, drop_unlabelled),
            scale=options.scale_option(scale),
            data_dirs=data_directories(data_dir),
            settings=ScoreSettings.parse(
                {
                    "profile": profile,
                    "metrics": parse_metrics(metrics),
                    "metrics_only": metrics_only,
                    "ceiling": ceiling,
                    "integrity": integrity,
                    "by": by,
                    "seed": seed,
                    "bootstrap": bootstrap,
                },
                source="the set of scoring options",
            ),
            threads=threads,
            cache_dir=cache_dir,
            device=device,
            device_memory=device_memory,
        )
    )
    if json:
        print_json({"directory": directory, **loads((directory / "score.json").read_text(encoding="utf-8"))})
        return
    print_report(report)
    say(f"Score directory: {directory}  (report: {directory / 'report.html'})")


def print_report(report: "ScoreReport") -> None:
    """Where the prediction stands, then overall scores, metrics, perturbations and what the integrity checks found."""
    from steval.evaluator.report.standing import standing

    stands = standing(report)
    say_wrapped(f"{stands.sentence} {stands.advice or ''}")
    say()
    if report.overall["leaderboard"].is_not_null().any():
        _print_frame("Overall score (overall: clipped, as cell-eval; leaderboard: ×100)", report.overall)
    _print_frame("Metrics (↑ high is good, ↓ low is good; steval metrics explains them)", report.breakdown, BREAKDOWN)
    if report.baselines.height:
        wide = report.baselines.pivot(
            "baseline", index=["cell_type", "metric"], values="value", aggregate_function="first"
        )
        _print_frame("Simple models on the same data", wide)
    shown = report.results.head(SHOWN_PERTURBATIONS)
    more = f"; the first {shown.height}" if report.results.height > shown.height else ""
    _print_frame(f"Perturbations ({report.results.height}{more})", shown)
    if report.integrity.height and not report.findings.height:
        say(f"Integrity: {counted(report.integrity.height, 'check')}, nothing found")
    if report.remarks.height:
        title = "Integrity" if report.findings.height else "Integrity: worth knowing"
        _print_frame(title, report.remarks, ("cell_type", "check", "status", "sentence"))
    for warning in report.record.get("warnings", []):
        say_wrapped(f"Note: {warning}")


def _print_frame(title: str, frame: "pl.DataFrame", columns: Sequence[str] | None = None) -> None:
    """The columns that hold anything; metrics with the direction that is better."""
    from steval.evaluator.metrics.catalog import with_arrow

    kept = [name for name in columns or frame.columns if name in frame.columns and not frame[name].is_null().all()]
    rows = [
        [with_arrow(value) if name == "metric" else value for name, value in zip(kept, row, strict=True)]
        for row in frame.select(kept).iter_rows()
    ]
    print_table(title, [with_arrow(name) for name in kept], rows)
