"""How options are shown: their group, what stands for their value, and how a shell completes it; one table for all commands.

Help is laid out here: rich's table of options cuts names at 80 columns and gives explanations a quarter of the width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

from steval.cli import completion
from steval.cli.output import bold, say_own, terminal_width
from steval.cli.tables import wrap
from steval.evaluator.metrics.profiles import PROFILES

INPUT, ASKED, CONTROLS, WRITTEN, NETWORK = (
    "Input",
    "What is asked for",
    "Control cells",
    "What is written",
    "The network",
)
SCORING, RUNNING, SERVICE, COLUMNS = "Scoring", "The run", "The service", "Columns of the files"
HARDWARE, COMMON = "Hardware", "For every command"
GROUPS = (INPUT, ASKED, CONTROLS, WRITTEN, SCORING, NETWORK, RUNNING, SERVICE, COLUMNS, HARDWARE, COMMON)
"""In the order of help."""
WIDEST = 100
"""Columns of text; longer lines are hard to read."""
INDENT, LEFT = 2, 30


@dataclass(frozen=True)
class Shown:
    """An option, by whichever command."""

    group: str
    value: str = ""
    """What stands for the value, where the option's own `metavar` says nothing else; choices as `a|b`. None for a switch."""
    complete: Callable[[Any, str], list[str]] | None = None
    """Beside choices: values that begin with what was typed."""

    @property
    def choices(self) -> list[str]:
        """The values where there are few."""
        return self.value.split("|") if "|" in self.value else []


OPTIONS: dict[str, Shown] = {
    "--out": Shown(WRITTEN, "PATH"),
    "--to": Shown(WRITTEN, "steval|arc"),
    "--run": Shown(WRITTEN, "DIR"),
    "--overwrite": Shown(WRITTEN),
    "--set": Shown(RUNNING, "KEY=VALUE"),
    "--init-from": Shown(INPUT, "PATH"),
    "--resume": Shown(INPUT, "DIR"),
    "--seeds": Shown(RUNNING, "K"),
    "--from-arc-config": Shown(INPUT, "YAML"),
    "--print-config": Shown(RUNNING),
    "--allow-mismatch": Shown(RUNNING),
    "--from-nothing": Shown(RUNNING),
    "--recipe": Shown(INPUT, "NAME"),
    "--synthetic": Shown(INPUT),
    "--real": Shown(INPUT, "H5AD"),
    "--train": Shown(INPUT, "H5AD"),
    "--data-dir": Shown(INPUT, "DIR"),
    "--genes": Shown(INPUT, "FILE"),
    "--perts": Shown(INPUT, "FILE"),
    "--contexts": Shown(INPUT, "CONTEXTS"),
    "--gene-col": Shown(INPUT, "COLUMN"),
    "--duplicate-genes": Shown(INPUT, "error|sum"),
    "--probe": Shown(INPUT, "H5AD"),
    "--perturbation-map": Shown(INPUT, "FILE"),
    "--perturbation-features": Shown(INPUT, "FILE"),
    "--target-sum": Shown(INPUT, "NUMBER"),
    "--licence": Shown(WRITTEN, "TEXT"),
    "--min-counts": Shown(ASKED, "NUMBER"),
    "--min-genes": Shown(ASKED, "N"),
    "--cell-type-name": Shown(WRITTEN, "NAME"),
    "--hvg": Shown(WRITTEN, "N"),
    "--perturbations": Shown(ASKED, "NAMES", completion.perturbations),
    "--request": Shown(ASKED, "FILE"),
    "--all": Shown(ASKED),
    "--cells": Shown(ASKED, "N"),
    "--min-cells": Shown(ASKED, "N"),
    "--max-cells": Shown(ASKED, "N"),
    "--cell-type": Shown(ASKED, "NAME", completion.cell_types),
    "--batch": Shown(ASKED, "NAME", completion.batches),
    "--output": Shown(ASKED, "cells|mean"),
    "--decoding": Shown(ASKED, "checkpoint|network|carried"),
    "--seed": Shown(ASKED, "N"),
    "--controls": Shown(CONTROLS, "H5AD"),
    "--by-batch": Shown(CONTROLS),
    "--controls-scale": Shown(CONTROLS, "counts|lognorm"),
    "--fill-missing": Shown(INPUT, "error|zero"),
    "--trust-order": Shown(CONTROLS),
    "--scale": Shown(WRITTEN, "counts|lognorm"),
    "--depth": Shown(WRITTEN, "NUMBER"),
    "--count-sampling": Shown(WRITTEN, "rounded|multinomial"),
    "--include-controls": Shown(WRITTEN),
    "--clip": Shown(WRITTEN, "LOW:HIGH"),
    "--season": Shown(WRITTEN, "2026|2025"),
    "--layout": Shown(WRITTEN, "csr|dense"),
    "--compression": Shown(WRITTEN, "none|lzf|gzip"),
    "--with-cell-type": Shown(WRITTEN),
    "--profile": Shown(SCORING, "|".join(PROFILES)),
    "--metrics": Shown(SCORING, "NAMES", completion.metrics),
    "--predict": Shown(SCORING),
    "--metrics-only": Shown(SCORING),
    "--only-common": Shown(SCORING),
    "--ceiling": Shown(SCORING),
    "--integrity": Shown(SCORING, "basic|full"),
    "--by": Shown(SCORING, "cell_type|context"),
    "--bootstrap": Shown(SCORING, "N"),
    "--cache-dir": Shown(SCORING, "DIR"),
    "--adapter": Shown(NETWORK, "PATH"),
    "--features": Shown(NETWORK, "FILE"),
    "--attention": Shown(NETWORK, "bidirectional|causal|causal-rope"),
    "--set-size": Shown(NETWORK, "N"),
    "--dtype": Shown(NETWORK, "float32|bf16"),
    "--compile": Shown(NETWORK),
    "--dry-run": Shown(RUNNING),
    "--estimate": Shown(RUNNING),
    "--engine": Shown(RUNNING, "local|ray"),
    "--address": Shown(RUNNING, "ADDRESS"),
    "--shard": Shown(RUNNING, "K/N"),
    "--trials": Shown(RUNNING, "N"),
    "--collect": Shown(RUNNING),
    "--verify": Shown(INPUT),
    "--concurrency": Shown(ASKED, "NUMBERS"),
    "--seconds": Shown(RUNNING, "NUMBER"),
    "--warmup": Shown(RUNNING, "NUMBER"),
    "--url": Shown(SERVICE, "URL"),
    "--private": Shown(WRITTEN),
    "--card": Shown(WRITTEN),
    "--api-key": Shown(SERVICE, "KEY"),
    "--model": Shown(SERVICE, "NAME"),
    "--models": Shown(SERVICE, "DIR"),
    "--host": Shown(SERVICE, "IP"),
    "--port": Shown(SERVICE, "N"),
    "--job-dir": Shown(SERVICE, "DIR"),
    "--api-key-file": Shown(SERVICE, "FILE"),
    "--new-key": Shown(SERVICE, "NAME"),
    "--rotate-key": Shown(SERVICE, "NAME"),
    "--no-auth": Shown(SERVICE),
    "--cors-origin": Shown(SERVICE, "ORIGIN"),
    "--shutdown-seconds": Shown(SERVICE, "N"),
    "--pert-col": Shown(COLUMNS, "COLUMN", completion.obs_columns),
    "--control": Shown(COLUMNS, "LABEL"),
    "--cell-type-col": Shown(COLUMNS, "COLUMN", completion.obs_columns),
    "--context-col": Shown(COLUMNS, "COLUMN", completion.obs_columns),
    "--batch-col": Shown(COLUMNS, "COLUMN", completion.obs_columns),
    "--drop-unlabelled": Shown(COLUMNS),
    "--device": Shown(HARDWARE, "auto|cpu|cuda|cuda:N"),
    "--device-memory": Shown(HARDWARE, "GB"),
    "--batch-cells": Shown(HARDWARE, "N"),
    "--threads": Shown(HARDWARE, "N"),
    "--workers": Shown(HARDWARE, "N"),
    "--json": Shown(COMMON),
    "--help": Shown(COMMON),
}
ARGUMENTS: dict[tuple[str, str], Callable[[Any, str], list[str]]] = {
    ("finetune", "config"): completion.recipes,
    ("doctor", "target"): completion.recipes,
    ("metrics", "names"): completion.metrics,
}
"""Completion of arguments, by command and name; all others are files."""


class Command(TyperCommand):
    """A command whose help and completion follow the table."""

    def __init__(self, *args: Any, **attributes: Any):
        super().__init__(*args, **attributes)
        for parameter in self.params:
            complete = completer(str(self.name), parameter)
            if complete is not None:
                parameter._custom_shell_complete = complete

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, text, arguments, and options by groups."""
        say_own("\n".join(help_lines(self, ctx, min(terminal_width(), WIDEST))))


class Group(TyperGroup):
    """The program: its commands, each with a sentence, before its own options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, text, commands, options."""
        width = min(terminal_width(), WIDEST)
        lines = ["", f"Usage: {ctx.command_path} [OPTIONS] COMMAND ...", "", *wrap(self.help or "", width)]
        rows = [(name, (one.help or "").split("\n\n")[0].replace("`", "")) for name, one in self.commands.items()]
        lines += _section("Commands", rows, width, left=12)
        lines += _section("Options", [(_named(one), _explained(one)) for one in self.get_params(ctx)], width)
        say_own("\n".join([*lines, "", *wrap((self.epilog or "").replace("*", ""), width), ""]))


def shown_as(parameter: Any) -> Shown | None:
    """The row of an option; None for an argument."""
    return next((OPTIONS[name] for name in parameter.opts if name in OPTIONS), None)


def completer(command: str, parameter: Any) -> Callable[[Any, Any, str], list[str]] | None:
    """What a shell asks for the values of a parameter; None: files, or nothing."""
    shown = shown_as(parameter)
    complete = ARGUMENTS.get((command, str(parameter.name))) if shown is None else shown.complete
    choices = [] if shown is None else shown.choices
    if complete is not None:
        return lambda ctx, _, incomplete: complete(ctx, incomplete)
    if choices:
        return lambda ctx, _, incomplete: [one for one in choices if one.startswith(incomplete)]
    return None


def help_lines(command: TyperCommand, ctx: Any, width: int) -> list[str]:
    """The help of a command within `width`."""
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    usage = " ".join(["Usage:", ctx.command_path, "[OPTIONS]", *(_metavar(one) for one in arguments)])
    lines = ["", *wrap(usage, width)]
    for paragraph in (command.help or "").split("\n\n"):
        text = " ".join(paragraph.replace("`", "").split())
        lines += ["", *(" " * INDENT + line for line in wrap(text, width - INDENT))]
    lines += _section("Arguments", [(_metavar(one), _explained(one)) for one in arguments], width)
    options = [one for one in command.get_params(ctx) if not isinstance(one, TyperArgument)]
    groups = {group: [one for one in options if (row := shown_as(one)) and row.group == group] for group in GROUPS}
    for group, members in groups.items():
        lines += _section(group, [(_named(one), _explained(one)) for one in members], width)
    return lines


def _section(title: str, rows: Sequence[tuple[str, str]], width: int, left: int = LEFT) -> Iterator[str]:
    if not rows:
        return
    yield from ("", bold(title))
    for name, text in rows:
        beside = wrap(" ".join(text.split()), width - INDENT - left)
        if len(name) > left - 2:
            yield from (" " * INDENT + line for line in wrap(name, width - INDENT))
        else:
            yield f"{' ' * INDENT}{name:<{left}}{beside.pop(0)}".rstrip()
        yield from (" " * (INDENT + left) + line for line in beside)


def _named(option: Any) -> str:
    """`-o, --out PATH`, `--layout [csr|dense]`, `--include-controls/--no-include-controls`."""
    shown = shown_as(option)
    names = ", ".join(sorted(option.opts, key=len))
    names += "".join(f"/{name}" for name in option.secondary_opts)
    value = option.metavar or (shown.value if shown else "")
    if not value or getattr(option, "is_flag", False):
        return names
    return f"{names} [{value}]" if "|" in value else f"{names} {value}"


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _explained(parameter: Any) -> str:
    """The help of a parameter, and what it is where it is not given."""
    parts = [(getattr(parameter, "help", None) or "").replace("`", "")]
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.required and not isinstance(parameter, TyperArgument):
        parts.append("[required]")
    elif parameter.show_default and default is not None and default is not False and not callable(default):
        parts.append(f"[default: {default}]")
    if parameter.envvar:
        parts.append(f"[or {parameter.envvar}]")
    return " ".join(parts)
