"""`steval compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    import polars as pl


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
        "Paired tests (over perturbations)": result.tests,
        "Settings that differ": result.settings,
    }
    if json:
        print_json({title: frame.to_dicts() for title, frame in tables.items()} | {"written": written})
        return
    for title, frame in tables.items():
        if frame.height:
            _print_comparison(title, frame)
    if written:
        say(f"-> {written}")


def _print_comparison(title: str, frame: "pl.DataFrame") -> None:
    """Without what is empty; the ends of an interval in one column, and the only comparison that there is in the title."""
    from steval.evaluator.metrics.catalog import with_arrow

    frame = frame.rename({"low": "difference_low", "high": "difference_high"}, strict=False)
    if "comparison" in frame.columns and frame["comparison"].n_unique() == 1:
        second, _, first = frame["comparison"][0].partition(" − ")
        title, frame = f"{title}: a = {first}, b = {second}, difference b − a", frame.drop("comparison")
    columns = [name for name in frame.columns if not frame[name].is_null().all()]
    rows = [
        [with_arrow(value) if name == "metric" else value for name, value in zip(columns, row, strict=True)]
        for row in frame.select(columns).iter_rows()
    ]
    print_table(title, columns, rows)
