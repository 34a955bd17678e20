"""What is around a command: variables that make libraries stumble, and errors of files and memory that are no bugs."""

import pytest
import typer
from typer.testing import CliRunner

from steval.cli.app import ErrorMappingGroup
from steval.cli.surroundings import require_environment, settle_environment
from steval.errors import ConfigError
from steval.machine import MAX_THREADS, THREAD_VARIABLES


@pytest.mark.parametrize("width", ["²", "-5", "abc", "1e3", "", "9" * 5000, "１２", "0"])
def test_a_width_that_is_no_number_is_none(width):
    environment = {"COLUMNS": width, "LINES": "40"}
    settle_environment(environment)
    assert "COLUMNS" not in environment
    assert (environment["LINES"], environment["MPLBACKEND"]) == ("40", "agg")


@pytest.mark.parametrize("value", ["0", "-3", "abc", "1.5", "²", "9" * 400, str(MAX_THREADS + 1)])
@pytest.mark.parametrize("name", THREAD_VARIABLES)
def test_numbers_of_threads_are_numbers(name, value):
    with pytest.raises(ConfigError, match=f"{name}=.*a whole number from 1 to {MAX_THREADS}"):
        require_environment({name: value})


def test_a_number_for_each_level_of_openmp_is_one():
    require_environment({"OMP_NUM_THREADS": "4, 2", "MKL_NUM_THREADS": "3", "NUMBA_NUM_THREADS": ""})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(36, "File name too long", "n" * 5000), "error: " + "n" * 200 + ": File name too long"),
        (PermissionError(13, "Permission denied", "cells.h5ad"), "error: cells.h5ad: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (
            MemoryError("Unable to allocate 9 GiB"),
            "error: not enough memory (Unable to allocate 9 GiB); close other programs",
        ),
        (MemoryError(), "error: not enough memory; close"),
    ],
)
def test_files_and_memory_are_no_bugs(error, said):
    app = typer.Typer(cls=ErrorMappingGroup)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    result = CliRunner().invoke(app, ["fail"])
    assert result.exit_code == 4
    assert result.stderr.startswith(said)
    assert "bug" not in result.stderr


def test_a_width_too_small_to_say_anything_is_made_larger():
    environment = {"COLUMNS": "1", "LINES": "9" * 17}
    settle_environment(environment)
    assert (environment["COLUMNS"], environment["LINES"]) == ("40", "100000")
