"""`steval convert`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say
from steval.wording import counted


def convert(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="arc-state run directory, or a .ckpt of it; with --to arc a checkpoint."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors checkpoint (or run directory) to write.")],
    to: Annotated[
        str, typer.Option("--to", help="steval: one file; arc: a run directory for arc-state 0.11.1.")
    ] = "steval",
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
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            help="Keep LoRA adapters apart: NAME.adapter.safetensors to write.",
            show_default="added to the weights",
        ),
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
    """Turn an arc-state model into one steval checkpoint, running no code of its files; or a checkpoint into an arc-state model.

    Example: `steval convert ST-Tahoe/ -o st-tahoe.safetensors --probe my_cells.h5ad --target-sum 10000`
    """
    if to not in FORMATS:
        raise typer.BadParameter(f"takes {' or '.join(FORMATS)}, got {to!r}", param_hint="--to")
    if to == "arc":
        _to_arc(context, source, out, json)
        return
    from steval.checkpoints.conversion import ConversionOptions
    from steval.workflows.checkpoints.convert import convert as run
    from steval.workflows.checkpoints.probe import CellOptions

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
        adapter=adapter,
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


FORMATS = ("steval", "arc")
_OF_BOTH = frozenset({"source", "out", "to", "json"})
"""Parameters that `--to arc` reads; the others say what arc-state's files do not."""


def _to_arc(context: typer.Context, source: Path, out: Path, json: bool) -> None:
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name not in _OF_BOTH
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"a checkpoint says these itself: {', '.join(given)}", param_hint="--to arc")
    from steval.workflows.checkpoints.convert import export_to_arc

    export = export_to_arc(source, out)
    if json:
        print_json(export.as_dict())
        return
    for part in export.left_out:
        say(f"- not in arc-state's files: {part}")
    say(f"{counted(len(export.files), 'file')} -> {out}. Predict with: {export.command}")
