"""Every `sh` block of docs/finetuning.md runs, in order, in one directory."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


def commands() -> list[list[str]]:
    """The lines of the page's `sh` blocks, split as a shell does."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 7
    for program, *arguments in commands():
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
