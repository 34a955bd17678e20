"""`steval compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, print_table, say, say_wrapped

if TYPE_CHECKING:
    import polars as pl


PAIRED = "Paired tests (over perturbations)"


def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_SCORE...", help="Two or more run directories, or score directories.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write a page (.html), or the figure alone (.png, .svg, .pdf)."),
    ] = None,
    json: options.JsonFlag = False,
) -> None:
    """Runs or scores side by side: what differs in the configuration, the curves, the best steps, each metric.

    Example: `steval compare runs/staged runs/full -o compare.html`
    """
    from steval.workflows.compare import compare as run
    from steval.workflows.figures.comparison import write_comparison

    result = run(paths)
    written = write_comparison(result, out) if out else None
    tables = {
        "Best checkpoints": result.best,
        "Metrics": result.metrics,
        PAIRED: result.tests,
        "Settings that differ": result.settings,
    }
    if json:
        print_json({title: frame.to_dicts() for title, frame in tables.items()} | {"written": written})
        return
    for title, frame in tables.items():
        if frame.height and title == PAIRED:
            _print_tests(frame)
        elif frame.height:
            _print_comparison(title, frame)
    if written:
        say(f"-> {written}")


def _print_comparison(title: str, frame: "pl.DataFrame") -> None:
    """Without what is empty, and with which direction of a metric is good."""
    from steval.evaluator.metrics.catalog import with_arrow

    columns = [name for name in frame.columns if not frame[name].is_null().all()]
    rows = [
        [with_arrow(value) if name == "metric" else value for name, value in zip(columns, row, strict=True)]
        for row in frame.select(columns).iter_rows()
    ]
    print_table(title, columns, rows)


def _print_tests(frame: "pl.DataFrame") -> None:
    """A table for each quantity of each two scores, which fits 80 columns, and below it what it shows, each sentence once."""
    short = {"difference": "b − a", "low": "b − a_low", "high": "b − a_high", "p_value": "p"}
    for part in frame.partition_by(["comparison", "quantity"], maintain_order=True):
        second, _, first = part["comparison"][0].partition(" − ")
        title = f"{PAIRED}, {part['quantity'][0]}: a = {first}, b = {second}"
        told = [
            name for name in ("comparison", "quantity", "exceeds_noise", "better", "sentence") if name in part.columns
        ]
        _print_comparison(title, part.drop(told).rename(short, strict=False))
        where = ["metric"] if part["cell_type"].n_unique() == 1 else ["cell_type", "metric"]
        for (sentence,), rows in part.group_by("sentence", maintain_order=True):
            names = ", ".join(" ".join(row) for row in rows.select(where).iter_rows())
            say_wrapped(f"{names if rows.height < part.height else 'All'}: {sentence}")
        say()
