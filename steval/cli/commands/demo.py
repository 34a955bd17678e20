"""`steval demo`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.commands.score import print_report
from steval.cli.output import print_json, print_table, say, say_wrapped

REAL_CAVEAT = (
    "What this can show: every step of the job on real Perturb-seq cells, and numbers equal to cell-eval's.\n"
    "What it cannot: that the model is good. 600 cells and five perturbations are few; at 100 cells each only MED12 has more than "
    "a few significant genes, so DE overlap rests on one perturbation, and the simple models beside the score are hard to beat. "
    "The cells are held out, the perturbations are not: this is interpolation. The network starts from random weights, since no "
    "pre-trained ST checkpoint may be shipped."
)
SYNTHETIC_CAVEAT = (
    "These cells are generated: 18,080 genes with known effects. The last table says how much of the truth the model found; it "
    "says nothing of real cells."
)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for everything the demo makes.")] = Path(
        "steval-demo"
    ),
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Generated cells with 18,080 genes and known effects.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the directory.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the demo's configuration: a.b=c (may be repeated).")
    ] = None,
    device: options.Device = "auto",
    json: options.JsonFlag = False,
) -> None:
    """The whole main job on real data that ships with steval: fine-tune, predict, score, table and report.

    Example: `steval demo` or `steval demo --synthetic --out synthetic-demo`
    """
    from steval.workflows.demo import run_demo

    result = run_demo(
        out,
        synthetic=synthetic,
        overwrite=overwrite,
        device=device,
        overrides=tuple(set_ or ()),
        announce=lambda text: say(text, err=True),
    )
    if json:
        places = {"checkpoint": result.checkpoint, "preds": result.preds, "score": result.score_dir}
        print_json({"directory": result.directory, **places, "overall": result.report.overall.to_dicts()})
        return
    print_report(result.report)
    if result.recovered is not None:
        columns = list(result.recovered.columns)
        print_table("Known effects found", columns, list(result.recovered.itertuples(index=False, name=None)))
    say()
    say_wrapped(SYNTHETIC_CAVEAT if synthetic else REAL_CAVEAT)
    checkpoint, preds = shlex.quote(str(result.checkpoint)), shlex.quote(str(result.preds))
    predicted = shlex.quote(str(result.directory / "more.h5ad"))
    name = result.report.results["perturbation"][0]
    say(
        f"\ncheckpoint:  {result.checkpoint}\npredictions: {result.preds}\n"
        f"report:      {result.score_dir / 'report.html'}\n\n"
        f"Try next:\n  steval score {checkpoint} {preds}\n  steval serve {checkpoint}\n"
        f"  steval predict {checkpoint} -o {predicted} --perturbations {name} --cells 100"
    )
