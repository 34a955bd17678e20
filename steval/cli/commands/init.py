"""`steval init`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json


def init(
    data: Annotated[Path, typer.Argument(metavar="DATA.h5ad", help="Cells to fine-tune on: counts or lognorm.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The YAML file to write.", show_default="DATA.yaml")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="The base: quick-cpu or full from nothing, raw-staged with --init-from.")
    ] = "quick-cpu",
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    batch_col: options.BatchCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    seed: options.Seed = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the YAML file.")] = False,
    json: options.JsonFlag = False,
) -> None:
    """Look at the data and write a commented configuration for `steval finetune`: columns, scale, held-out perturbations.

    Example: `steval init screen.h5ad -o screen.yaml`
    """
    from steval.workflows.init import write_configuration

    path = out or Path(data.stem + ".yaml")
    columns = options.column_options(pert_col, control, cell_type_col, batch_col, drop_unlabelled)
    write_configuration(data, path, recipe=recipe, options=columns, seed=seed, overwrite=overwrite)
    start = " --init-from CKPT" if recipe in ("raw-staged", "frozen-only", "embedding-rounds") else ""
    if json:
        print_json({"configuration": path})
        return
    typer.echo(path.read_text(encoding="utf-8"), nl=False)
    typer.echo(f"written to {path}; next: steval finetune {path}{start} --dry-run", err=True)
