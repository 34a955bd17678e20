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
            columns = _told(frame)
            print_table(title, columns, frame.select(columns).rows())
    if written:
        say(f"-> {written}")


def _told(frame: "pl.DataFrame") -> list[str]:
    """The columns that say something: not those that are empty, or name the only comparison that there is."""
    is_one = "comparison" in frame.columns and frame["comparison"].n_unique() == 1
    return [name for name in frame.columns if not (is_one and name == "comparison") and not frame[name].is_null().all()]
