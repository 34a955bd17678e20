"""The command line as a whole: help, exit codes, errors in one line and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import COMMANDS, app

RUNNER = CliRunner()
STEVAL = str(Path(sys.executable).with_name("steval"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str):
    result = RUNNER.invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f"steval {command}" in result.output.replace("\n", " ")
    assert "Example" in result.output


def test_help_answers_without_torch_or_other_heavy_imports():
    heavy = ("torch", "scanpy", "anndata", "bentoml", "lightning", "pandas", "matplotlib")
    code = f"import sys; from steval.cli.app import app; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_console_script_as_a_process():
    result = subprocess.run([STEVAL, "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "steval 0.1.0\n")


def test_unknown_commands_and_options_are_bad_usage():
    assert RUNNER.invoke(app, ["nonsense"]).exit_code == 2
    assert RUNNER.invoke(app, ["prepare", "--nonsense"]).exit_code == 2


def test_a_steval_error_is_one_line_and_its_exit_code(tmp_path: Path):
    result = RUNNER.invoke(app, ["prepare", str(tmp_path / "no.h5ad"), "-o", str(tmp_path / "out.h5ad")])
    assert result.exit_code == 4
    assert result.stderr == f"error: no such data file: {tmp_path / 'no.h5ad'}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bug_says_so_and_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("steval.data.cells.prepare.prepare", broken)
    arguments = ["prepare", "in.h5ad", "-o", str(tmp_path / "out.h5ad")]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 1
    assert "internal error: ZeroDivisionError: oops" in result.stderr
    assert "Traceback" not in result.stderr
    assert isinstance(RUNNER.invoke(app, [*arguments, "--debug"]).exception, ZeroDivisionError)


def test_interruption_is_no_bug(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("steval.data.cells.prepare.prepare", interrupted)
    result = RUNNER.invoke(app, ["prepare", "in.h5ad", "-o", "out.h5ad"])
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
