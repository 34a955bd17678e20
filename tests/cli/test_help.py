"""Help at any width: every option named whole and in a group, choices spelled; and what a shell completes."""

import contextlib
import os
import re
import subprocess
import sys
from typing import get_args

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from steval.cli.app import COMMANDS, app
from steval.cli.help import ARGUMENTS, COLUMNS, COMMON, HARDWARE, OPTIONS, completer, shown_as
from steval.evaluator.metrics.profiles import PROFILES
from steval.model.config import Attention
from steval.service.schemas import PredictBody

GROUP = typer.main.get_command(app)


def help_of(command: str, width: int, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_whole_and_nothing_is_wider_than_the_terminal(command, width, monkeypatch):
    text = help_of(command, width, monkeypatch)
    words = set(re.split(r"[\s,/]+", text))
    for parameter in GROUP.commands[command].params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert not name.startswith("-") or name in words, name
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    for sign in ("<bool>", "<str>", "<path>"):
        assert sign not in text


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_headings_are_bold_on_a_terminal(arguments):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "steval", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment, check=True)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
        while piece := os.read(ours, 65536):
            text += piece
    os.close(ours)
    assert b"\x1b[1mOptions\x1b[0m" in text or b"\x1b[1mInput\x1b[0m" in text
    assert rb"\x1b" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_group_and_the_common_ones_come_last(command, monkeypatch):
    for parameter in GROUP.commands[command].params:
        if parameter.param_type_name == "option":
            shown = shown_as(parameter)
            assert shown is not None, parameter.opts
            assert bool(shown.value) != parameter.is_flag, parameter.opts
    lines = help_of(command, 80, monkeypatch).splitlines()
    titles = [line for line in lines if line in {shown.group for shown in OPTIONS.values()}]
    assert titles[-1] == COMMON
    last = [title for title in titles if title in (COLUMNS, HARDWARE, COMMON)]
    assert titles[-len(last) :] == last


def test_defaults_and_choices_are_spelled(monkeypatch):
    text = " ".join(help_of("predict", 100, monkeypatch).split())
    for piece in (
        "--output [cells|mean]",
        "--layout [csr|dense]",
        "[default: 100]",
        "Seed of every random choice. [default: 0]",
    ):
        assert piece in text
    assert "The h5ad to write. [required]" in text


def test_choices_are_those_that_are_taken():
    assert tuple(OPTIONS["--attention"].choices) == get_args(Attention)
    assert set(OPTIONS["--profile"].choices) == set(PROFILES)
    assert set(OPTIONS["--output"].choices) == set(get_args(PredictBody.model_fields["output"].annotation))


@pytest.mark.parametrize("width", [60, 80])
def test_the_program_lists_its_commands(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = CliRunner().invoke(app, ["--help"]).output
    assert max(map(cell_len, text.splitlines())) <= width
    for name in (*COMMANDS, "--install-completion", "--show-completion", "--debug"):
        assert name in text.split() or f"{name}," in text.split()


def completed(command: str, name: str, incomplete: str, **given) -> list[str]:
    parameter = next(one for one in GROUP.commands[command].params if name in (*one.opts, one.name))
    context = type("Context", (), {"params": given})()
    return completer(command, parameter)(context, parameter, incomplete)


def test_values_are_completed(tmp_path):
    assert completed("predict", "--compression", "l") == ["lzf"]
    assert "quick-cpu" in completed("finetune", "config", "q")
    assert completed("score", "--profile", "v") == ["vcc", "vcc2026"]
    assert completed("score", "--metrics", "mse,ma")[:1] == ["mse,mae"]
    obs = pd.DataFrame({"gene": ["a", "b"], "guide": ["1", "2"], "n": [1, 2]}, index=["x", "y"])
    cells = ad.AnnData(np.ones((2, 3), np.float32), obs=obs)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert completed("prepare", "--pert-col", "g", source=tmp_path / "cells.h5ad") == ["gene", "guide"]


def test_names_of_the_checkpoint_are_completed(tiny):
    assert completed("predict", "--perturbations", "STAT1,S", checkpoint=tiny) == ["STAT1,SRC", "STAT1,STAT1"]
    assert completed("predict", "--cell-type", "", checkpoint=tiny) == ["H1", "all"]
    assert len(completed("predict", "--batch", "", checkpoint=tiny)) >= 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from support.service_models import lognorm_cells, write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("completion") / "tiny.safetensors", lognorm_cells())


@pytest.mark.parametrize(
    "given", [{}, {"checkpoint": "gone.safetensors"}, {"source": "gone.h5ad"}, {"paths": ["a", None]}]
)
def test_what_cannot_be_completed_is_nothing(given):
    for name in ("--perturbations", "--cell-type", "--batch", "--pert-col"):
        assert completed("predict", name, "", **given) == []
    assert all(complete(None, "no such") == [] for complete in ARGUMENTS.values())


def test_a_shell_gets_its_script_and_its_answers(monkeypatch):
    environment = {
        "_STEVAL_COMPLETE": "complete_bash",
        "COMP_WORDS": "steval predict --compression ",
        "COMP_CWORD": "3",
    }
    answer = CliRunner().invoke(app, [], prog_name="steval", env=environment)
    assert answer.output.split() == ["none", "lzf", "gzip"]
    script = CliRunner().invoke(app, [], prog_name="steval", env={"_STEVAL_COMPLETE": "source_bash"})
    assert "complete -o default" in script.output
