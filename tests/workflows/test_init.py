"""`steval init`: a configuration that fits the data at hand and is read back."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.cells.cellfile import write_anndata
from steval.data.example import example
from steval.data.synthetic import generate
from steval.errors import ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.run import rehearse
from steval.workflows.init import write_configuration


def test_few_perturbations_hold_out_cells_and_counts_get_a_total(tmp_path: Path) -> None:
    write_anndata(example(), tmp_path / "screen.h5ad")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "screen.h5ad"), "-o", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    config = FinetuneConfig.load(tmp_path / "c.yaml")
    assert (config.data.scale, config.data.split.by, config.sets.size) == ("counts", "cells", 64)
    assert config.data.target_sum is not None and config.data.target_sum > 100
    assert config.data.columns.cell_type is None
    assert "# the base; keys here go on top" in result.stdout
    again = CliRunner().invoke(app, ["init", str(tmp_path / "screen.h5ad"), "-o", str(tmp_path / "c.yaml")])
    assert again.exit_code == 2
    assert "already there" in again.output


def test_whole_perturbations_are_held_out_where_there_are_enough_and_the_run_would_start(tmp_path: Path) -> None:
    cells = generate(
        num_genes=30, num_perturbations=12, cells_per_perturbation=12, num_controls=20, cell_types=("a: b", "null"),
        affected_genes=(3, 5), counts_per_cell=300, num_batches=1, seed=1,
    ).cells  # fmt: skip
    write_anndata(cells, tmp_path / "odd [x].h5ad")
    write_configuration(tmp_path / "odd [x].h5ad", tmp_path / "c.yaml")
    config = FinetuneConfig.load(tmp_path / "c.yaml")
    split = config.data.split
    assert set(split.val) == set(split.test) == {"a: b", "null"}
    assert "the same in all 2 contexts: perturbations measured nowhere" in (tmp_path / "c.yaml").read_text()
    held = [set(split.val["null"]), set(split.test["null"])]
    assert [len(names) for names in held] == [1, 1] and not held[0] & held[1]
    assert config.sets.size == 8
    rehearse(config, device="cpu")


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'raw-staged'"):
        write_configuration(tmp_path / "absent.h5ad", tmp_path / "c.yaml", recipe="raw-stagd")
