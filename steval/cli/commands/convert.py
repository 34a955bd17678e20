"""`steval convert`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say
from steval.wording import counted


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="ARC_DIR_OR_CKPT", help="arc-state run directory, or a .ckpt of it.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors checkpoint to write.")],
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention", help="bidirectional, causal or causal-rope.", show_default="as recorded, else bidirectional"
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="h5ad with control and perturbed cells: take the attention that fits it best."),
    ] = None,
    genes: Annotated[
        list[Path] | None,
        typer.Option("--genes", help="Gene names in the model's order: text, CSV or h5ad (may be repeated)."),
    ] = None,
    perturbation_map: Annotated[
        Path | None, typer.Option("--perturbation-map", help="pert_onehot_map.pt, for a .ckpt without its directory.")
    ] = None,
    perturbation_features: Annotated[
        Path | None,
        typer.Option("--perturbation-features", help="Features of unseen perturbations: .pt, .npz, .parquet or .csv."),
    ] = None,
    controls: Annotated[
        Path | None,
        typer.Option("--controls", help="h5ad whose control cells become the checkpoint's default controls."),
    ] = None,
    target_sum: Annotated[
        float | None, typer.Option("--target-sum", help="Total per cell before log1p of the training data.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence of the weights, kept with them.")] = None,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    batch_col: options.BatchCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    scale: options.ScaleOption = None,
    seed: options.Seed = 0,
    json: options.JsonFlag = False,
) -> None:
    """Turn an arc-state model into one steval checkpoint; no code of its files is run.

    Example: `steval convert ST-Tahoe/ -o st-tahoe.safetensors --probe my_cells.h5ad --target-sum 10000`
    """
    from steval.checkpoints.conversion import ConversionOptions
    from steval.workflows.convert import convert as run
    from steval.workflows.probe import CellOptions

    scale = options.scale_option(scale)
    report, probed = run(
        source,
        out,
        ConversionOptions(
            attention=attention,
            genes=tuple(genes or ()),
            perturbation_map=perturbation_map,
            perturbation_features=perturbation_features,
            scale=scale,
            target_sum=target_sum,
            licence=licence,
        ),
        probe=probe,
        controls=controls,
        cells=CellOptions(
            options.column_options(pert_col, control, cell_type_col, batch_col, drop_unlabelled), scale, seed
        ),
    )
    if json:
        print_json({**report.as_dict(), "probe": probed.losses if probed else None})
        return
    if probed:
        for regime, loss in probed.losses.items():
            taken = "  <- taken" if regime == report.manifest.model.attention else ""
            say(f"energy loss under {regime}: {loss:.8g}{taken}")
    for note in report.manifest.notes:
        say(f"- {note}")
    manifest = report.manifest
    held = counted(len(manifest.perturbations), "perturbation")
    say(f"{held}, attention {manifest.model.attention}, scale {manifest.scale} -> {out}")
