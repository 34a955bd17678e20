"""Every `sh` block of docs/finetuning.md runs, in order, in one directory."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
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


def test_the_recipes_of_the_page_are_those_that_ship() -> None:
    from steval.trainer.recipes import recipe_names
    from steval.trainer.settings.arc_translation import DEAD_KEYS

    text = PAGE.read_text(encoding="utf-8")
    for name in [*recipe_names(), *DEAD_KEYS]:
        assert f"`{name}`" in text, name
