"""The `steval` command: a Typer app with a file per command; each parses, calls one function and prints."""

import atexit
import gc
import io
import os
import sys

from steval.cli.surroundings import settle_environment, settle_streams


def main() -> None:
    """Console script."""
    # Python looks through a million objects for circles as it ends, for up to a second, when all of them go anyway
    atexit.register(gc.freeze)
    settle_streams()
    settle_environment(os.environ)  # before any library with threads is loaded
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode costs a character, not what was computed
            stream.reconfigure(errors="backslashreplace")
    from steval.cli.app import app
    from steval.cli.output import prepare_streams

    prepare_streams()
    app()
