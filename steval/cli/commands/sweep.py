"""`steval sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, print_table, say
from steval.errors import ConfigError
from steval.wording import counted

SHOWN = 10
"""Trials in the table on the screen."""


def sweep(
    space: Annotated[
        Path,
        typer.Argument(
            metavar="SPACE.yaml", help="A configuration, and which of its settings vary.", show_default=False
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: KEY.SUBKEY=VALUE (may be repeated).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory.", show_default="SPACE.sweep")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="How many in all.", show_default="the space's, else 20")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Trials at once.", show_default="the space's, else 1")
    ] = None,
    threads: options.Threads = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the space and the configuration; run nothing.")
    ] = False,
    json: options.JsonFlag = False,
) -> None:
    """Fine-tune with many settings: what to try next is learnt from what was tried, and what falls behind is given up.

    Example: `steval sweep rates.yaml --trials 30 --workers 2`. Interrupted? Run the same again.
    """
    from steval.workflows.sweep.outcome import short_names, value_text
    from steval.workflows.sweep.run import sweep as run
    from steval.workflows.sweep.space import SweepSpace

    given = {"trials": trials, "workers": workers, "threads": threads}
    overrides = [*(changes or []), *(f"{name}={value}" for name, value in given.items() if value is not None)]
    settings = SweepSpace.load(space, overrides)
    if dry_run:
        config = settings.require_valid()
        say(
            f"{counted(settings.trials, 'trial')} over {counted(len(settings.space), 'setting')}, by {config.checks.select_best}"
        )
        return
    result = run(settings, out or space.with_suffix(".sweep"), tell=lambda text: say(text, err=True))
    names = list(settings.space)
    if json:
        print_json(
            {
                "directory": result.directory,
                "metric": result.metric,
                "trials": [
                    {"trial": one.number, "state": one.state, "value": one.value, "settings": one.chosen, "error": one.error,
                     "run": result.run_of(one)}
                    for one in result.records
                ],
            }
        )  # fmt: skip
    else:
        rows = [
            (str(one.number), one.state, one.value, *(value_text(one.chosen.get(name)) for name in names))
            for one in result.records[:SHOWN]
        ]
        print_table(
            f"{counted(len(result.records), 'trial')} -> {result.directory}",
            ("trial", "state", result.metric, *short_names(names)),
            rows,
        )
    best = result.best
    if best is None:
        raise ConfigError(
            "no trial ran to its end",
            [f"trial {one.number}: {one.error or one.state}" for one in result.records[:SHOWN]],
        )
    if not json:
        say(f"best: trial {best.number}, {result.metric} {best.value:.6g}: {result.run_of(best)}")
