"""`steval batch`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, print_table, say
from steval.errors import BatchError
from steval.wording import counted, duration, memory_size

if TYPE_CHECKING:
    from steval.batch.run import BatchResult, Outline

SHOWN = ("rank", "checkpoint", "data", "request", "overall", "overall_low", "overall_high", "integrity_fail", "state")


def batch(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST.yaml", help="What to predict and score.", show_default=False)
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: KEY.SUBKEY=VALUE (may be repeated).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory.", show_default="MANIFEST.batch")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; run nothing.")
    ] = False,
    engine: Annotated[str | None, typer.Option("--engine", help="local or ray.", show_default="local")] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster.", show_default="a fresh one on this machine")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Tasks at once.", show_default="as cores and memory allow")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Do every Nth job only, from the Kth: K/N. For several machines.")
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="Run nothing; make the leaderboard of what the shards have done.")
    ] = False,
    data_dir: options.DataDirs = None,
    json: options.JsonFlag = False,
) -> None:
    """Predict and score many checkpoints on many data sets: resumable, on this machine or on Ray, one leaderboard.

    Example: `steval batch night.yaml --dry-run`, then `steval batch night.yaml`. Killed? Run the same again.
    """
    from steval.batch.run import collect as collect_batch
    from steval.batch.run import outline, parse_shard, run_batch
    from steval.batch.settings import BatchManifest
    from steval.data.outputs import real_path

    running = {"engine": engine, "address": address, "workers": workers}
    overrides = [*(changes or []), *(f"run.{name}={value}" for name, value in running.items() if value is not None)]
    settings = BatchManifest.load(manifest, overrides)
    if out is not None:
        settings = settings.model_copy(update={"out": str(real_path(out))})
    if data_dir:
        found = (*settings.data_dirs, *(str(real_path(directory)) for directory in data_dir))
        settings = settings.model_copy(update={"data_dirs": found})
    part = parse_shard(shard)
    if dry_run:
        _show_plan(outline(manifest, settings, shard=part), json)
        return
    result = collect_batch(manifest, settings) if collect else run_batch(manifest, settings, shard=part)
    _show_result(result, json)
    if result.problems:
        raise BatchError(
            f"without a result: {len(result.problems)} of {counted(result.leaderboard.height, 'job')}; run the same "
            "command to try them again",
            result.problems,
        )


def _show_plan(plan: "Outline", as_json: bool) -> None:
    rows = [
        {
            "job": one.job.name,
            "do": one.job.do,
            "perturbations": len(one.job.perturbations),
            "cells": one.job.num_cells,
            "tasks": one.num_tasks,
            "memory_gb": one.memory / 2**30,
            "predictions_gb": one.output_bytes / 2**30,
            "minutes": one.seconds / 60,
            "state": "done" if one.is_done else "to do",
        }
        for one in plan.jobs
    ]
    basis = f"from {counted(plan.measured, 'measured task')}" if plan.measured else "a guess until tasks were measured"
    summary = {
        "jobs": len(rows),
        "tasks": sum(one.num_tasks for one in plan.jobs),
        "workers": plan.workers,
        "minutes": plan.seconds / 60,
        "basis": basis,
        "directory": plan.plan.layout.root,
    }
    if as_json:
        print_json({**summary, "plan": rows})
        return
    shown = [
        (
            *(row[name] for name in ("job", "do", "perturbations", "cells", "tasks")),
            *(memory_size(size) for size in (one.memory, one.output_bytes)),
            duration(one.seconds),
            row["state"],
        )
        for row, one in zip(rows, plan.jobs, strict=True)
    ]
    print_table(
        "Plan", ("job", "do", "perturbations", "cells", "tasks", "memory", "predictions", "time", "state"), shown
    )
    size = (
        ", ".join((counted(len(rows), "job"), counted(summary["tasks"], "task")))
        + f" on {counted(plan.workers, 'worker')}"
    )
    say(f"{size}: about {duration(plan.seconds)} ({basis})")
    say(f"Results would go to {summary['directory']}")


def _show_result(result: "BatchResult", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "directory": result.directory,
                "finished": len(result.counts.finished),
                "reused": result.counts.reused,
                "failed": len(result.problems),
                "leaderboard": result.leaderboard.to_dicts(),
            }
        )
        return
    print_table("Leaderboard", SHOWN, result.leaderboard.select(SHOWN).rows())
    say(f"Leaderboard: {result.report}")
