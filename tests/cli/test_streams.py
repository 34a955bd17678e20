"""What a command says reaches any stdout: closed early, not UTF-8; and its exit code says whether the work was done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steval.data.example import example_path

SAY = "import sys; from steval.cli.output import *; prepare_streams(); "


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    names = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**names, **environment}, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
def test_any_encoding_takes_every_text(encoding):
    table = "print_table('Zellen × Gene – Übersicht…', ('name', 'wert'), [('遺伝子', 1.5), ('β→γ', None)]); "
    code = SAY + table + "say('→ −1'); say('é', err=True)"
    done = run(code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "1.5000" in text
    assert "Gene" in text
    if encoding != "utf-8":
        assert "-> -1" in text
        assert r"\u907a" in text


def closed_after(lines: int, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout is closed after some lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "steval", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    return process.wait(120), error


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_who_leaves_does_not_make_a_finished_command_fail(tmp_path, lines):
    code, error = closed_after(
        lines, "prepare", str(example_path()), "-o", "out.h5ad", "--cell-type-name", "H1", cwd=tmp_path
    )
    assert (code, [path.name for path in tmp_path.iterdir()]) == (0, ["out.h5ad"]), error
    for word in ("Traceback", "interrupted", "Broken", "internal"):
        assert word not in error


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["--version"]])
def test_help_may_be_cut_short(tmp_path, arguments):
    code, error = closed_after(0, *arguments, cwd=tmp_path)
    assert (code, error) == (0, "")


def test_an_error_keeps_its_exit_code_when_nobody_reads(tmp_path):
    assert closed_after(0, "inspect", "nothing.safetensors", cwd=tmp_path)[0] == 3


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_is_closed_is_in_nobodys_way(tmp_path, closed):
    """Its number would else go to the next file that is opened, and what is printed into that file."""
    command = [
        sys.executable,
        "-m",
        "steval",
        "prepare",
        str(example_path()),
        "-o",
        "out.h5ad",
        "--cell-type-name",
        "H1",
    ]
    shell = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *command], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (0, ["out.h5ad"]), done.stderr
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *command[:3], "inspect", "no"], cwd=tmp_path, check=False
    )
    assert done.returncode == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_result_that_cannot_be_said_is_an_error_and_kept(tmp_path):
    command = [
        sys.executable,
        "-m",
        "steval",
        "prepare",
        str(example_path()),
        "-o",
        "out.h5ad",
        "--cell-type-name",
        "H1",
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, (tmp_path / "out.h5ad").is_file()) == (4, True)
    assert done.stderr.splitlines()[-1] == "error: cannot write to stdout: No space left on device"
