"""`steval prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.output import print_facts, print_json, print_table, say, say_wrapped
from steval.wording import counted

if TYPE_CHECKING:
    from steval.data.cells.prepare import PrepareReport


def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN.h5ad",
            help="Raw counts (or lognorm) with a perturbation column; or the challenge's control bundle, a zip.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The lognorm h5ad to write; for a bundle, a directory.")],
    target_sum: Annotated[
        float | None, typer.Option("--target-sum", min=1, help="Total per cell before log1p.", show_default="10000")
    ] = None,
    genes: Annotated[
        Path | None,
        typer.Option("--genes", help="Gene list (a name per line) or h5ad: output exactly these genes, in this order."),
    ] = None,
    gene_col: Annotated[
        str | None, typer.Option("--gene-col", help="var column with the gene names.", show_default="the index")
    ] = None,
    duplicate_genes: Annotated[
        str, typer.Option("--duplicate-genes", help="error, or sum: add up counts of columns with the same name.")
    ] = "error",
    fill_missing: Annotated[
        str, typer.Option("--fill-missing", help="error, or zero: genes of --genes that the file lacks.")
    ] = "error",
    min_counts: Annotated[float, typer.Option("--min-counts", min=0, help="Drop cells with a smaller total.")] = 0,
    min_genes: Annotated[int, typer.Option("--min-genes", min=0, help="Drop cells with fewer detected genes.")] = 0,
    min_cells: Annotated[int, typer.Option("--min-cells", min=1, help="Drop perturbations with fewer cells.")] = 1,
    hvg: Annotated[
        int | None, typer.Option("--hvg", min=2, help="Keep this many highly variable genes (scanpy's seurat flavour).")
    ] = None,
    cell_type_name: Annotated[
        str | None, typer.Option("--cell-type-name", help="Cell type of all cells, where there is no column.")
    ] = None,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    batch_col: options.BatchCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    scale: options.ScaleOption = None,
    json: options.JsonFlag = False,
) -> None:
    """Turn raw counts into a lognorm file with declared scale, checked genes and standard columns.

    Example: `steval prepare screen.h5ad -o prepared.h5ad --pert-col gene --control NT --min-counts 500`
    """
    from steval.data.cells.genes import read_genes
    from steval.data.cells.prepare import PrepareSettings
    from steval.data.cells.prepare import prepare as run
    from steval.data.challenge.bundle import is_bundle, prepare_bundle
    from steval.data.outputs import require_output

    values = {
        "min_counts": min_counts,
        "min_genes": min_genes,
        "min_cells": min_cells,
        "gene_column": gene_col,
        "duplicate_genes": duplicate_genes,
        "fill_missing": fill_missing,
        "cell_type_name": cell_type_name,
        "hvg": hvg,
    }
    if target_sum is not None:
        values["target_sum"] = target_sum
    settings = PrepareSettings.parse(values, source="the options")
    columns = options.column_options(pert_col, control, cell_type_col, batch_col, drop_unlabelled)
    if is_bundle(source):
        if genes is not None:
            raise typer.BadParameter("a control bundle has its own gene list", param_hint="--genes")
        reports = prepare_bundle(source, out, options=columns, scale=options.scale_option(scale), settings=settings)
        _say_contexts(reports, out, json)
        return
    require_output(out, {"--genes": genes})
    report = run(
        source,
        out,
        options=columns,
        scale=options.scale_option(scale),
        genes=read_genes(genes) if genes else None,
        settings=settings,
    )
    if json:
        print_json(
            {
                "path": report.path,
                "cells": report.num_cells,
                "genes": report.num_genes,
                "perturbations": report.perturbations,
                "found": report.found,
                "done": report.done,
                "warnings": report.warnings,
            }
        )
        return
    found = [*((key, value) for key, value in report.found.items() if key != "columns")]
    found += [(f"column: {key}", value or "no such column") for key, value in report.found["columns"].items()]
    print_facts(
        f"Found in {source}", [(key, f"{value:,}" if isinstance(value, int) else str(value)) for key, value in found]
    )
    print_table("Done", ("step",), [(step,) for step in report.done])
    for warning in report.warnings:
        say_wrapped(f"Warning: {warning}")
        say()
    sizes = list(report.perturbations.items())
    print_table(f"Cells per perturbation ({counted(len(sizes), 'label')})", ("label", "cells"), sizes[:20])
    say(f"{counted(report.num_cells, 'cell')} × {counted(report.num_genes, 'gene')} (lognorm) -> {report.path}")


def _say_contexts(reports: "dict[str, PrepareReport]", out: Path, json: bool) -> None:
    if json:
        print_json(
            {name: {"path": out / one.path.name, "cells": one.num_cells} for name, one in reports.items() if one.path}
        )
        return
    rows = [(name, one.num_cells, one.num_genes, one.path.name) for name, one in reports.items() if one.path]
    print_table("Control cells (lognorm)", ("context", "cells", "genes", "file"), rows)
    say(f"{counted(len(rows), 'context')} and the challenge's lists -> {out}")
