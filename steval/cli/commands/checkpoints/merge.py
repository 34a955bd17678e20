"""`steval merge`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say
from steval.wording import counted


def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The checkpoint that the adapter was trained from.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="NAME.adapter.safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors checkpoint to write.")],
    json: options.JsonFlag = False,
) -> None:
    """Add an adapter to its base: one checkpoint, as every other.

    Example: `steval merge base.safetensors runs/lora/checkpoints/best-val.adapter.safetensors -o merged.safetensors`
    """
    from steval.workflows.checkpoints.merge import merge as run

    checkpoint = run(base, adapter, out)
    if json:
        print_json(
            {
                "path": str(out),
                "made_by": checkpoint.manifest.made_by,
                "perturbations": len(checkpoint.manifest.perturbations),
            }
        )
        return
    say(
        f"{counted(len(checkpoint.manifest.perturbations), 'perturbation')}, {adapter.name} added to {base.name} -> {out}"
    )
