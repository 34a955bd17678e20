"""Options that several commands share, defined once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steval.machine import MAX_THREADS

if TYPE_CHECKING:
    from steval.data.columns import ColumnOptions

PertCol = Annotated[
    str | None,
    typer.Option(
        "--pert-col",
        help="obs column with the perturbation.",
        show_default="from the checkpoint or the file, else target_gene",
    ),
]
Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        help="Label of the control cells.",
        show_default="from the checkpoint or the file, else non-targeting",
    ),
]
CellTypeCol = Annotated[
    str | None,
    typer.Option(
        "--cell-type-col",
        help="obs column with the cell type.",
        show_default="from the checkpoint or the file, else cell_type",
    ),
]
BatchCol = Annotated[
    str | None,
    typer.Option(
        "--batch-col", help="obs column with the batch.", show_default="from the checkpoint or the file, else batch"
    ),
]
DropUnlabelled = Annotated[
    bool,
    typer.Option(
        "--drop-unlabelled",
        help="Leave out cells without a label in a column that is used, in place of refusing them.",
    ),
]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", help="counts or lognorm: settles the scale of a file that does not declare it.")
]
DataDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--data-dir",
        envvar="STEVAL_DATA_DIR",
        help="Where to look for recorded data files that moved (may be repeated).",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def _busy_threads(value: int | None) -> int | None:
    """More threads than the machine keeps busy take memory for their stacks; OpenMP ends the process where there is none."""
    if value is not None:
        from steval.limits import require_processes

        require_processes(value, "--threads")
    return value


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MAX_THREADS, callback=_busy_threads, help="CPU threads.", show_default="all cores"
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DeviceMemory = Annotated[
    float | None,
    typer.Option("--device-memory", min=0.1, max=2**20, help="GiB of a GPU that scoring may use.", show_default="8"),
]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="NAME.adapter.safetensors that was trained from the checkpoint, which is its base."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


def column_options(
    pert_col: str | None,
    control: str | None,
    cell_type_col: str | None,
    batch_col: str | None,
    drop_unlabelled: bool = False,
) -> "ColumnOptions":
    """The shared column options as `steval.data.ColumnOptions`."""
    from steval.data.columns import ColumnOptions

    return ColumnOptions(
        perturbation=pert_col,
        control=control,
        cell_type=cell_type_col,
        batch=batch_col,
        drop_unlabelled=drop_unlabelled,
    )


def scale_option(value: str | None) -> Literal["counts", "lognorm"] | None:
    """`--scale` checked: counts, lognorm or none."""
    if value is None or value == "counts" or value == "lognorm":
        return value
    raise typer.BadParameter(f"counts or lognorm, got {value!r}", param_hint="--scale")
