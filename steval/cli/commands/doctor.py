"""`steval doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_facts, print_json, say
from steval.wording import counted


def doctor(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG_OR_RUN",
            help="A configuration (ours or arc-state's), a recipe's name, a metrics.csv, or a run directory.",
        ),
    ],
    json: options.JsonFlag = False,
) -> None:
    """Findings about a configuration or a run's curves, each with its evidence and the setting to change.

    Example: `steval doctor runs/screen`
    """
    from steval.workflows.doctor import diagnose

    findings = diagnose(target)
    if json:
        print_json({"target": target, "findings": [asdict(finding) for finding in findings]})
        return
    if not findings:
        say(f"{target}: nothing found")
        return
    say(f"{target}: {counted(len(findings), 'finding')}")
    say()
    for finding in findings:
        print_facts(f"{finding.severity}: {finding.topic}", [("found", finding.evidence), ("change", finding.change)])
