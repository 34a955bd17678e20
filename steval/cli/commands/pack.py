"""`steval pack`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say
from steval.wording import counted, memory_size


def pack(
    preds: Annotated[
        Path,
        typer.Argument(metavar="PREDS", help="Predicted cells and measured controls, as steval predict writes them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The submission, a .vcc file.")],
    genes: Annotated[
        Path | None,
        typer.Option(
            "--genes", help="The challenge's gene list (a name per line); the predictions must have exactly these."
        ),
    ] = None,
    season: Annotated[
        str | None,
        typer.Option(
            "--season",
            help="2026 (counts in several contexts) or 2025 (lognorm).",
            show_default="by scale and columns of PREDS",
        ),
    ] = None,
    perts: Annotated[
        Path | None, typer.Option("--perts", help="2026: the challenge's perturbation list, pert_counts.csv.")
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            "--contexts",
            help="2026: contexts A,B,C that must be there.",
            show_default="those of manifest.json beside the lists",
        ),
    ] = None,
    context_col: Annotated[
        str | None, typer.Option("--context-col", help="2026: obs column with the context.", show_default="context")
    ] = None,
    with_cell_type: Annotated[bool, typer.Option("--with-cell-type", help="2025: keep the cell type column.")] = False,
    max_cells: Annotated[
        int | None,
        typer.Option(
            "--max-cells",
            min=1,
            help="2025: refuse more predicted cells than the challenge takes.",
            show_default="200000",
        ),
    ] = None,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    scale: options.ScaleOption = None,
    json: options.JsonFlag = False,
) -> None:
    """Pack predictions as a Virtual Cell Challenge submission; no real data needed.

    2026: as `vcc prep` makes it, and all that it would refuse is told at once. 2025: as `cell-eval prep` makes it.

    Example: `steval pack preds.h5ad -o submission.vcc --genes gene_names.csv --perts pert_counts.csv`
    """
    from steval.workflows.pack import PackOptions, pack_predictions

    asked = {
        "season": int(season) if season and season.isdecimal() and len(season) == 4 else season,
        "genes": genes,
        "columns": options.column_options(pert_col, control, cell_type_col, None, drop_unlabelled),
        "perts": perts,
        "contexts": None if contexts is None else tuple(name.strip() for name in contexts.split(",") if name.strip()),
        "context_col": context_col,
        "with_cell_type": with_cell_type,
        "max_cells": max_cells,
        "scale": options.scale_option(scale),
    }
    submission, reason = pack_predictions(preds, out, PackOptions.parse(asked, source="the options"))
    if json:
        print_json(asdict(submission))
        return
    size = f"{counted(submission.num_cells, 'cell')} × {counted(submission.num_genes, 'gene')}"
    size += f", {counted(submission.num_perturbations, 'perturbation')}"
    say(f"season {submission.season}, {reason}")
    say(f"{size}, {memory_size(submission.num_bytes)} -> {submission.path}")
    if submission.contexts:
        say("cells of each context: " + ", ".join(f"{name} {number}" for name, number in submission.contexts.items()))
    if submission.normalised:
        say("counts were scaled to the cells' median total and log-transformed, as cell-eval does")
    if submission.reordered:
        say("genes were put into the order of the gene list")
