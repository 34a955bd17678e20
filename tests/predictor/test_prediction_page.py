"""Every command and the Python of docs/prediction.md run, in order, in one directory."""

import re
import shutil

import anndata as ad
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from support.documented import ROOT, blocks, commands_to_run

PAGE = ROOT / "docs" / "prediction.md"


@pytest.fixture
def directory(checkpoint, cells_path, tmp_path, monkeypatch):
    """Where the page's files are."""
    shutil.copy(checkpoint.path, tmp_path / "model.safetensors")
    shutil.copy(cells_path, tmp_path / "screen.h5ad")
    (tmp_path / "request.csv").write_text("target_gene,n_cells,median_umi_per_cell\nSTAT1,20,5000\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(directory):
    lines = commands_to_run(PAGE)
    assert len(lines) >= 4
    for program, *arguments in lines:
        assert program == "steval"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        assert ad.read_h5ad(arguments[arguments.index("-o") + 1]).n_obs > 0


def test_python(directory, capsys):
    for block in blocks(PAGE, "python"):
        exec(block, {})
    assert "STAT1 H1 (16, 120)" in capsys.readouterr().out


def test_options_on_the_page_exist():
    text = CliRunner().invoke(app, ["predict", "--help"], terminal_width=300, env={"COLUMNS": "300"}).output
    ours = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8")))
    elsewhere = {"--target-sum", "--real", "--perturbation-features", "--seeds"}
    assert [option for option in sorted(ours - elsewhere) if option not in text] == []
