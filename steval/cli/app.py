"""The app: commands, the `--debug` and `--version` switches, and the one place where errors become exit codes."""

import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from steval import __version__
from steval.cli.help import Command, Group
from steval.cli.surroundings import require_environment
from steval.errors import ConfigError, DataError, StevalError
from steval.logs import configure
from steval.signals import end_on_sigterm
from steval.wording import needs_extra, printable

LONGEST_NAME = 200
"""Characters of a file's name in a message about it."""
COMMANDS = (
    "demo", "prepare", "init", "finetune", "sweep", "predict", "score", "metrics", "pack", "serve", "load", "batch", "compare",
    "doctor", "calibrate", "inspect", "convert", "merge", "push",
)  # fmt: skip
"""In the order of `--help`; each is a function in the module of its name."""
ON_CHECKPOINTS = frozenset({"calibrate", "inspect", "convert", "merge", "push"})
"""Those whose modules lie in the room `checkpoints`."""

EXTRAS = {
    "lightning": "train", "tensorboard": "train", "bentoml": "serve", "httpx": "serve", "ray": "ray", "huggingface_hub": "hub",
    "wandb": "wandb", "optuna": "sweep",
}  # fmt: skip
"""Packages that come with one of steval's extras alone."""


class ErrorMappingGroup(Group):
    """Runs a command and turns errors into one message on stderr and an exit code; `--debug` anywhere shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = {"debug": "--debug" in args}
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        end_on_sigterm()
        try:
            require_environment(os.environ)
            return super().invoke(ctx)
        except StevalError as error:
            if ctx.obj["debug"]:
                raise
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except (KeyboardInterrupt, BrokenPipeError) as error:
            if ctx.obj["debug"]:
                raise
            said = str(error) if isinstance(error, KeyboardInterrupt) else ""
            _say(said or "interrupted; nothing half-written was left under a final name")
            raise typer.Exit(getattr(error, "exit_code", 130)) from error
        except (OSError, MemoryError) as error:  # no bug, but what is around the program
            if ctx.obj["debug"]:
                raise
            _say(f"error: {_what_failed(error)}")
            raise typer.Exit(DataError.exit_code) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if ctx.obj["debug"] or extra is None:
                raise
            _say(f"error: {needs_extra('this command', str(error.name), extra)}")
            raise typer.Exit(ConfigError.exit_code) from error
        except Exception as error:
            if ctx.obj["debug"] or type(error).__module__.startswith(("click", "typer")):
                raise
            _say(f"internal error: {type(error).__name__}: {error}")
            _say("This is a bug in steval; run again with --debug for the traceback")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=ErrorMappingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fine-tune, serve and score State Transition (ST) models of cell responses.",
    epilog="Exit codes: 0 done, 1 a bug, 2 bad usage or configuration, 3 a checkpoint that cannot be trusted or read, "
    "4 data that breaks its contract, 5 some jobs of a batch failed. Start with: **steval demo**",
)


def _what_failed(error: OSError | MemoryError) -> str:
    """A file, disk, permission or the memory, in a sentence."""
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}; close other programs, or ask for less at once"
    where = "" if error.filename is None else f"{str(error.filename)[:LONGEST_NAME]}: "
    return f"{where}{error.strerror or error}"


def _say(message: str) -> None:
    sys.stderr.write(printable(message) + "\n")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steval {__version__}")
        raise typer.Exit


@app.callback()
def _configure(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug messages (works anywhere).")
    ] = False,
) -> None:
    debugging = debug or context.obj["debug"]
    configure(logging.DEBUG if debugging else logging.WARNING if quiet else logging.INFO)


def _register() -> None:
    for name in COMMANDS:
        room = "steval.cli.commands.checkpoints" if name in ON_CHECKPOINTS else "steval.cli.commands"
        app.command(name, cls=Command)(getattr(import_module(f"{room}.{name}"), name))


_register()
