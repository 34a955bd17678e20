"""Every `sh` block of docs/finetuning.md runs, in order, in one directory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.example import example_path
from support.documented import ROOT, commands_to_run

PAGE = ROOT / "docs" / "finetuning.md"


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands_to_run(PAGE)) >= 7
    for program, *arguments in commands_to_run(PAGE):
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
            continue
        assert program == "steval"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    assert (tmp_path / "preds.h5ad").exists()


@pytest.mark.slow
def test_the_readme_s_way_from_a_screen_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README.md, "With your own cells": its commands with fewer steps and draws."""
    short = {
        "finetune": ["--set", "phases.0.steps=4", "--set", "checks.validate_every=4"],
        "score": ["--bootstrap", "20"],
    }
    monkeypatch.chdir(tmp_path)
    shutil.copy(example_path(), "screen.h5ad")
    lines = [words for words in commands_to_run(ROOT / "README.md") if words[0] == "steval"]
    assert [command for _, command, *_ in lines] == ["prepare", "init", "finetune", "score", "predict"]
    for _, command, *arguments in lines:
        result = CliRunner().invoke(app, [command, *arguments, *short.get(command, [])])
        assert result.exit_code == 0, f"{command} {arguments}: {result.output}"
    assert (tmp_path / "runs" / "screen" / "score" / "report.html").exists()
    assert (tmp_path / "preds.h5ad").exists()


def test_the_recipes_of_the_page_are_those_that_ship() -> None:
    from steval.trainer.recipes import recipe_names
    from steval.trainer.settings.arc_translation import DEAD_KEYS

    text = PAGE.read_text(encoding="utf-8")
    for name in [*recipe_names(), *DEAD_KEYS]:
        assert f"`{name}`" in text, name
