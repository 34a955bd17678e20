"""The representation guard and the preflight table."""

import re
from pathlib import Path

import numpy as np
import pytest

from steval.data.cells.cellfile import read_anndata, write_anndata
from steval.errors import ConfigError, DataError
from steval.trainer.progress.notices import Notice
from steval.trainer.run import rehearse
from steval.wording import duration
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
    assert re.fullmatch(
        r".* KiB on each device, .* KiB beside it while checkpoints are written", table["memory estimate"]
    )


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


def test_a_frozen_backbone_of_random_weights_is_refused_unless_asked_for(screen_path: Path, tmp_path: Path) -> None:
    frozen = tiny_config(screen_path, "phases.0.steps=1", "phases.1.steps=1", network={})
    with pytest.raises(
        ConfigError, match=r"without --init-from .* 1 phase freezes it or a part of it \(frozen\).* --from-nothing"
    ):
        run(frozen, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    told: list[Notice] = []
    sized = preflight(screen_path, tmp_path / "sized")
    run(frozen, tmp_path / "run", from_nothing=True, report=told.append)
    for notice in (sized, told[0]):
        assert "the backbone has random weights, and 1 phase freezes it or a part of it (frozen)" in notice.warnings[0]
    whole = tiny_config(screen_path, network={}, phases=[{"name": "all", "steps": 1}])
    run(whole, tmp_path / "whole", report=told.append)
    assert not told[-2].warnings


def test_a_rehearsal_tells_everything_and_writes_nothing(
    screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[Notice] = []
    rehearse(tiny_config(screen_path), device="cpu", report=told.append)
    assert [notice.title.split(",")[0] for notice in told] == [
        "Preflight",
        "New layers",
        "Phase 1 of 2",
        "Phase 2 of 2",
        "Estimate",
    ]
    estimate = dict(told[-1].rows)
    assert estimate["steps"] == "16 in 2 phases"
    assert estimate["cells seen"] == "512 on each device"
    assert "s a step" in estimate["time"]
    with pytest.raises(DataError, match="no file matches"):
        rehearse(tiny_config(tmp_path / "absent.h5ad"), device="cpu")
    assert not list(tmp_path.iterdir())


def test_progress_is_a_line_for_each_row_of_losses_where_there_is_no_terminal(
    screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "steval.trainer.progress.notices.logger.info", lambda text, *values: lines.append(text % values)
    )
    run(tiny_config(screen_path), tmp_path / "run")
    assert [line.split(" steps,")[0] for line in lines] == [
        *(f"frozen: {step}/7" for step in (2, 4, 6, 7)), *(f"all: {step}/9" for step in (2, 4, 6, 8, 9)),
    ]  # fmt: skip
    assert re.fullmatch(
        r"all: 4/9 steps, [\d.e+]+ steps/s, \d+ s left; train/total [\d.]+, val/gene [\d.]+, best [\d.]+", lines[5]
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
