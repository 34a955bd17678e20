"""`steval calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.memory import importing
from steval.cli.output import print_json, print_table


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, or a run directory (its best one).")],
    real: Annotated[
        Path | None,
        typer.Option(
            "--real",
            help="h5ad with validation cells and their controls, none of which trained; never the ones that test.",
            show_default="the validation part of the training data on record",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Where to write the checkpoint.", show_default="CKPT.calibrated.safetensors beside it"
        ),
    ] = None,
    data_dir: options.DataDirs = None,
    seed: options.Seed = 0,
    json: options.JsonFlag = False,
) -> None:
    """Choose how a checkpoint's predictions become cells, on validation cells, and write a checkpoint with the choice.

    Example: `steval calibrate runs/quick-cpu --real validation.h5ad -o calibrated.safetensors`
    """
    with importing():
        from steval.workflows.checkpoints.calibrate import calibrate as run
        from steval.workflows.checkpoints.calibrate import calibrated_path, calibration_notice
        from steval.workflows.score import data_directories

    out = out or calibrated_path(checkpoint)
    found = run(checkpoint, real, out, data_dirs=data_directories(data_dir), seed=seed)
    if json:
        print_json({"checkpoint": str(out), "decoding": found.decoding.as_dict(), **found.record})
        return
    notice = calibration_notice(found)
    print_table(notice.title, notice.columns, notice.rows)
    typer.echo(f"calibrated checkpoint: {out}")
