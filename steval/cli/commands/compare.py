"""`steval compare`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, print_table, say


def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_SCORE...", help="Two or more run directories, or score directories.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the curves (.png) or everything (.html).")
    ] = None,
    json: options.JsonFlag = False,
) -> None:
    """Runs or scores side by side: what differs in the configuration, the curves, the best steps, each metric.

    Example: `steval compare runs/staged runs/full -o compare.html`
    """
    from steval.workflows.compare import compare as run
    from steval.workflows.compare import write_comparison

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
            print_table(title, frame.columns, frame.rows())
    if written:
        say(f"-> {written}")
