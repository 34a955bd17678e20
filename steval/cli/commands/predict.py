"""`steval predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steval.cli import options
from steval.cli.help import COLUMNS, CONTROLS, HARDWARE, INPUT, NETWORK, WRITTEN, shown_as
from steval.cli.memory import importing, keep_freed_memory
from steval.cli.output import print_json, say
from steval.errors import ConfigError
from steval.wording import counted

if TYPE_CHECKING:
    from steval.service.client import ServiceClient


def predict(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="The h5ad to write.")],
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CKPT",
            help="A checkpoint (.safetensors) or run directory; several: their effects are averaged; none with --url.",
            show_default=False,
        ),
    ] = None,
    perturbations: Annotated[
        list[str] | None, typer.Option("--perturbations", "-p", help="Names A,B (may be repeated).")
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            "--request",
            help="A table (.csv, .tsv) with perturbation,num_cells or target_gene,n_cells,median_umi_per_cell; or an .h5ad: "
            "the perturbations, cell numbers and cell types in it.",
        ),
    ] = None,
    all_known: Annotated[
        bool, typer.Option("--all", help="Every perturbation that the checkpoint knows (the default).")
    ] = False,
    cells: Annotated[
        int, typer.Option("--cells", "-n", min=1, help="Cells of each perturbation, where the request has no numbers.")
    ] = 100,
    min_cells: Annotated[int | None, typer.Option("--min-cells", min=1, help="At least so many cells of each.")] = None,
    max_cells: Annotated[int | None, typer.Option("--max-cells", min=1, help="At most so many cells of each.")] = None,
    seed: options.Seed = 0,
    controls: Annotated[
        Path | None,
        typer.Option(
            "--controls",
            help="h5ad with the control cells to start from.",
            show_default="those of an h5ad request, else the checkpoint's own",
        ),
    ] = None,
    contexts: Annotated[
        list[str] | None,
        typer.Option(
            "--contexts",
            help="Predict in several contexts, each from its own control cells: NAME=H5AD (repeated), or the directory that steval "
            "prepare made of the challenge's control bundle. Their name goes into a column context.",
        ),
    ] = None,
    cell_type: Annotated[
        list[str] | None,
        typer.Option(
            "--cell-type", help="Cell type to predict in (may be repeated), or all.", show_default="the only one"
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Start from controls of this batch alone.")] = None,
    by_batch: Annotated[
        bool, typer.Option("--by-batch", help="With an h5ad request: each batch starts from its own controls.")
    ] = False,
    output: Annotated[str, typer.Option("--output", help="cells, or mean: a mean profile of each.")] = "cells",
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            help="lognorm, or counts: integers at the controls' depth.",
            show_default="the checkpoint's",
        ),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option("--depth", help="Median total of a cell for --scale counts.", show_default="as the controls"),
    ] = None,
    count_sampling: Annotated[
        str | None,
        typer.Option(
            "--count-sampling",
            help="How --scale counts makes whole numbers: rounded up or down by chance, or drawn multinomially.",
            show_default="rounded",
        ),
    ] = None,
    include_controls: Annotated[
        bool | None,
        typer.Option(
            "--include-controls/--no-include-controls",
            help="Write the measured control cells too.",
            show_default="where their genes are known, without --contexts",
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="LOW:HIGH", help="Limit predicted values, e.g. 0:12 or :12.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="csr or dense.")] = "csr",
    compression: Annotated[
        str, typer.Option("--compression", help="none, lzf (half the size, slower) or gzip.")
    ] = "none",
    controls_scale: Annotated[
        str | None,
        typer.Option(
            "--controls-scale", help="counts or lognorm: settles the scale of controls that do not declare it."
        ),
    ] = None,
    fill_missing: Annotated[
        str, typer.Option("--fill-missing", help="error, or zero: genes that the controls lack.")
    ] = "error",
    trust_order: Annotated[
        bool, typer.Option("--trust-order", help="Take the controls' columns by position, not by gene name.")
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Features of unseen perturbations (.pt, .npz, .parquet or .csv)."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option("--attention", help="bidirectional, causal or causal-rope.", show_default="the checkpoint's"),
    ] = None,
    decoding: Annotated[
        str,
        typer.Option(
            "--decoding",
            help="checkpoint: as it was calibrated; network: the cells that the network puts out; carried: its effect, carried by "
            "measured control cells.",
        ),
    ] = "checkpoint",
    set_size: Annotated[
        int | None, typer.Option("--set-size", min=1, help="Cells seen together.", show_default="as in training")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            help="NAME.adapter.safetensors that was trained from the checkpoint, its base; with --url its name there.",
        ),
    ] = None,
    batch_cells: Annotated[
        int | None, typer.Option("--batch-cells", min=1, help="Cells computed together.", show_default="1024")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bf16.")] = "float32",
    compile_network: Annotated[bool, typer.Option("--compile", help="Compile the network first.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Ask a running service, such as http://127.0.0.1:3000, in place of CKPT."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="With --url: name or digest of the model there.", show_default="the service's own"
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="STEVAL_API_KEY", help="Key of the service.", show_default=False)
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    pert_col: options.PertCol = None,
    control: options.Control = None,
    cell_type_col: options.CellTypeCol = None,
    batch_col: options.BatchCol = None,
    drop_unlabelled: options.DropUnlabelled = False,
    json: options.JsonFlag = False,
) -> None:
    """Predict perturbed cells from a checkpoint and measured control cells.

    Example: `steval predict model.safetensors -o preds.h5ad --perturbations STAT1,SRC --cells 200 --seed 1`
    """
    asked: dict[str, Any] = {
        "out": out,
        "perturbations": perturbations or (),
        "request": request,
        "all": all_known,
        "cells": cells,
        "min_cells": min_cells,
        "max_cells": max_cells,
        "seed": seed,
        "output": output,
        "decoding": decoding,
        "cell_types": cell_type or (),
        "batch": batch,
    }
    if url is not None:
        _refuse_local_options(context)
        from steval.service.client import ServiceClient

        with ServiceClient(url, api_key, model=model, adapter=None if adapter is None else str(adapter)) as service:
            _predict_by_service(service, asked, json)
        return
    if model is not None:
        raise ConfigError(
            f"--model (here {model}) names a model of a running service: say where that is with --url; or give the checkpoint "
            "to predict with as CKPT, without --model"
        )
    if not checkpoints:
        raise typer.BadParameter("name the checkpoint, or a running service with --url", param_hint="CKPT")
    with importing():
        from steval.predictor.job import PredictionJob, run_job

    keep_freed_memory()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    low, high = clip_range(clip)
    values = {
        "checkpoint": checkpoints[0],
        "others": tuple(checkpoints[1:]),
        "adapter": adapter,
        **asked,
        "by_batch": by_batch,
        "controls": controls,
        "contexts": contexts,
        "controls_scale": controls_scale,
        "fill_missing": fill_missing,
        "trust_order": trust_order,
        "features": features,
        "columns": options.column_options(pert_col, control, cell_type_col, batch_col, drop_unlabelled),
        "written": _given(
            {
                "scale": scale,
                "median_depth": depth,
                "count_sampling": count_sampling,
                "include_controls": include_controls,
                "layout": layout,
                "compression": compression,
                "clip_low": low,
                "clip_high": high,
            }
        ),
        "device": device,
        "dtype": dtype,
        "batch_cells": batch_cells,
        "set_size": set_size,
        "attention": attention,
        "compile": compile_network,
    }
    done = run_job(PredictionJob.parse(_given(values), source=SOURCE))
    if json:
        print_json(
            {
                "path": done.path,
                "cells": done.num_cells,
                "rows": done.num_rows,
                "controls": done.num_controls,
                "perturbations": done.num_perturbations,
                "seconds": done.seconds,
                "cells_per_second": done.cells_per_second,
            }
        )
        return
    beside = f", {counted(done.num_controls, 'measured control')} beside them" if done.num_controls else ""
    say(
        f"{counted(done.num_cells, 'cell')} of {counted(done.num_perturbations, 'perturbation')}{beside} -> {done.path}"
    )


SOURCE = "what was asked of steval predict"
_LOCAL = frozenset({INPUT, CONTROLS, WRITTEN, NETWORK, COLUMNS, HARDWARE})
"""Groups of options that the service decides, not its caller."""


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_local_options(context: typer.Context) -> None:
    """The checkpoint, and the options that the service decides."""
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name not in ("out", "adapter")
        and ((shown := shown_as(parameter)) is None or shown.group in _LOCAL)
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"a service decides these itself: {', '.join(given)}", param_hint="--url")


def _predict_by_service(service: "ServiceClient", asked: dict[str, Any], json: bool) -> None:
    from steval.service.remote import RemoteJob, run_remote

    job = RemoteJob.parse(_given(asked), source=SOURCE)
    request = run_remote(job, service)
    num_perturbations = len({item.perturbation for item in request.items})
    if json:
        print_json(
            {"path": job.out, "cells": request.num_cells, "perturbations": num_perturbations, "url": service.url}
        )
        return
    say(f"{counted(request.num_cells, 'cell')} of {counted(num_perturbations, 'perturbation')} -> {job.out}")


def clip_range(text: str | None) -> tuple[float | None, float | None]:
    """`LOW:HIGH` as numbers; an empty side is no limit."""
    if text is None:
        return None, None
    low, separator, high = text.partition(":")
    try:
        limits = float(low) if low else None, float(high) if high else None
    except ValueError:
        limits = None, None
    if not separator or limits == (None, None):
        raise typer.BadParameter(f"takes LOW:HIGH such as 0:12 or :12, got {text!r}", param_hint="--clip")
    return limits
