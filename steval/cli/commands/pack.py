"""`steval pack`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say
from steval.wording import counted


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
    with_cell_type: Annotated[bool, typer.Option("--with-cell-type", help="Keep the cell type column.")] = False,
    max_cells: Annotated[
        int, typer.Option("--max-cells", min=1, help="Refuse more predicted cells than the challenge takes.")
    ] = 200_000,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    scale: options.ScaleOption = None,
    json: options.JsonFlag = False,
) -> None:
    """Pack predictions as a Virtual Cell Challenge submission, as `cell-eval prep` makes it; no real data needed.

    Example: `steval pack preds.h5ad -o submission.vcc --genes gene_names.csv`
    """
    from steval.workflows.pack import pack_predictions

    submission = pack_predictions(
        preds,
        out,
        options.column_options(pert_col, control, cell_type_col, None, drop_unlabelled),
        genes=genes,
        with_cell_type=with_cell_type,
        max_cells=max_cells,
        scale=options.scale_option(scale),
    )
    if json:
        print_json(asdict(submission))
        return
    size = f"{counted(submission.num_cells, 'cell')} × {counted(submission.num_genes, 'gene')}"
    size += f", {counted(submission.num_perturbations, 'perturbation')}"
    say(f"{size}, {submission.num_bytes / 2**20:.1f} MiB -> {submission.path}")
    if submission.normalised:
        say("counts were scaled to the cells' median total and log-transformed, as cell-eval does")
    if submission.reordered:
        say("genes were put into the order of the gene list")
