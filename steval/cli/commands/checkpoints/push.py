"""`steval push`."""

from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_json, say


def push(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .safetensors checkpoint, run directory or adapter.")
    ],
    target: Annotated[str, typer.Argument(metavar="hf://OWNER/REPO[@BRANCH][/PATH]", help="Where it goes.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, where it is made.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Write README.md anew where there is one.")] = False,
    json: options.JsonFlag = False,
) -> None:
    """Put a checkpoint on a model hub, verified, with a card filled from its own description.

    Example: `steval push runs/mine hf://my-lab/st-thp1/st-thp1.safetensors --private`
    """
    from steval.workflows.checkpoints.push import push as run

    pushed = run(checkpoint, target, private=private, card=card)
    if json:
        print_json({"reference": str(pushed.reference), "card": pushed.has_card})
        return
    say(
        f"{pushed.reference}" + ("" if pushed.has_card else " (its README.md was left as it is; --card writes it anew)")
    )
