"""Every `sh` and `python` block of docs/scoring.md runs, in order, in one directory, on what the demo left behind."""

import shutil

import polars as pl
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from support.documented import ROOT, blocks, commands_to_run

PAGE = ROOT / "docs" / "scoring.md"
SHORT = ["--profile", "minimal", "--bootstrap", "20"]
"""What makes a command of the page quick."""


@pytest.fixture(scope="module")
def directory(demo, tmp_path_factory):
    """Where the page's commands have run."""
    place = tmp_path_factory.mktemp("scoring")
    for name, path in (
        ("preds.h5ad", demo.preds),
        ("best-val.safetensors", demo.checkpoint),
        ("real.h5ad", demo.directory / "data" / "evaluation.h5ad"),
        ("train.h5ad", demo.directory / "data" / "train.h5ad"),
    ):
        shutil.copy(path, place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for program, *arguments in commands_to_run(PAGE):
            assert program == "steval"
            result = CliRunner().invoke(app, [*arguments, *SHORT])
            assert result.exit_code == 0, f"{arguments}: {result.output}"
    return place


def test_every_command_of_the_page_runs(directory):
    assert len(commands_to_run(PAGE)) >= 2
    assert pl.read_csv(directory / "scores" / "run1" / "breakdown.csv")["normalised"].drop_nulls().len() > 0


def test_the_python_of_the_page_runs(directory, monkeypatch):
    monkeypatch.chdir(directory)
    first, second = blocks(PAGE, "python")
    names: dict = {}
    exec(first.replace('train="train.h5ad")', 'train="train.h5ad", profile="minimal", bootstrap=20)'), names)
    assert 0 <= names["report"].score <= 1
    for name in ("a", "b"):
        shutil.copytree(directory / "scores" / "run1", directory / "scores" / name)
    exec(second, {})
