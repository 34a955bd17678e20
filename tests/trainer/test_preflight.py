"""The representation guard and the preflight table."""

from pathlib import Path

import numpy as np
import pytest

from steval.data.cells.cellfile import read_anndata, write_anndata
from steval.errors import ConfigError, DataError
from steval.trainer.progress.notices import Notice
from support.tiny_runs import run, tiny_config


def preflight(screen_path: Path, run_dir: Path, *overrides: str, **options: object) -> Notice:
    told: list[Notice] = []
    small = ("phases.0.steps=1", "phases.1.steps=1")
    run(tiny_config(screen_path, *small, *overrides), run_dir, report=told.append, **options)
    return told[0]


def test_the_table_says_what_is_about_to_happen(screen_path: Path, tmp_path: Path) -> None:
    table = dict(preflight(screen_path, tmp_path / "run").rows)
    assert table["starts from"] == "nothing (fresh weights)"
    assert table["evaluator's space"] == "genes (48)"
    assert table["scale"] == "lognorm, target_sum 1000"
    assert table["cells per set"] == "8"
    assert "GiB" in table["memory estimate"]


def test_an_embedding_is_warned_of_when_it_is_allowed(screen_path: Path, tmp_path: Path) -> None:
    notice = preflight(
        screen_path, tmp_path / "run", "data.input_key=X_pca", "network.gene_decoder=[8]", allow_mismatch=True
    )
    assert "scored under 0.2" in notice.warnings[0]
    assert "5.7" in notice.warnings[0]


def test_another_target_sum_than_the_checkpoint_is_refused(screen_path: Path, tmp_path: Path) -> None:
    first = run(tiny_config(screen_path, "phases.0.steps=1", "phases.1.steps=1"), tmp_path / "first")
    cells = read_anndata(screen_path)
    cells.X = cells.X.astype(np.float32).expm1().multiply(2).tocsr().log1p()
    cells.uns["steval"] = {**cells.uns["steval"], "target_sum": 2000.0}
    write_anndata(cells, tmp_path / "other.h5ad")
    with pytest.raises((ConfigError, DataError), match="target_sum"):
        run(tiny_config(tmp_path / "other.h5ad", network={}), tmp_path / "run", init_from=first.best)


def test_nothing_is_written_when_the_data_is_bad(screen_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        run(tiny_config(tmp_path / "absent.h5ad"), tmp_path / "run")
    with pytest.raises(DataError, match="has no obs column 'gene_symbol'"):
        run(tiny_config(screen_path, "data.columns.perturbation=gene_symbol"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
