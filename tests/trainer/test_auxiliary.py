"""Runs with heads on an auxiliary embedding: logged under their own names, resumed to the bit, absent from checkpoints."""

import csv
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from steval.checkpoints.store import load_checkpoint
from steval.data.splits.assignment import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError, DataError
from steval.predictor.engine import Predictor
from support.tiny_runs import assert_same_run, last_weights, run, stop_at, tiny_config

HEADS = ("data.auxiliary_key=X_pca", "loss.distil=0.5", "loss.contrast=0.1")


def logged(run_dir: Path, name: str) -> list[tuple[str, float]]:
    with (run_dir / "metrics.csv").open() as handle:
        return [(row["phase"], float(row[name])) for row in csv.DictReader(handle) if row.get(name)]


@pytest.fixture(scope="module")
def whole(screen_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("auxiliary") / "run"
    assert run(tiny_config(screen_path, *HEADS), run_dir).finished
    return run_dir


def test_losses_are_logged_and_fall_and_no_checkpoint_has_the_heads(whole: Path, screen_path: Path) -> None:
    for name in ("train/distil", "train/contrast", "val/distil", "val/contrast"):
        values = [value for _, value in logged(whole, name)]
        assert len(values) >= 4 and np.isfinite(values).all(), name
    distil = [value for _, value in logged(whole, "val/distil")]
    assert distil[-1] < distil[0]
    assert any(name.startswith("auxiliary.") for name in last_weights(whole))
    best = load_checkpoint(whole / "checkpoints" / "best-val.safetensors")
    assert not [name for name in best.weights if "auxiliary" in name]
    assert Predictor(best, device="cpu").known


def test_a_stopped_run_resumes_to_the_same_bits(whole: Path, screen_path: Path, tmp_path: Path) -> None:
    assert not run(tiny_config(screen_path, *HEADS), tmp_path / "run", on_step=stop_at(9)).finished
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "run", whole)


def test_a_weight_of_0_in_every_phase_but_one_changes_that_one_alone(screen_path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    run(tiny_config(screen_path), plain)
    late = tmp_path / "late"
    run(tiny_config(screen_path, "data.auxiliary_key=X_pca", "phases.1.distil=0.5", "phases.1.start=last"), late)
    again = tmp_path / "again"
    run(tiny_config(screen_path, "phases.1.start=last"), again)
    first = [value for phase, value in logged(late, "train/gene") if phase == "frozen"]
    assert first == [value for phase, value in logged(plain, "train/gene") if phase == "frozen"]
    second = [value for phase, value in logged(late, "train/gene") if phase == "all"]
    assert second != [value for phase, value in logged(again, "train/gene") if phase == "all"]
    assert {phase for phase, _ in logged(late, "val/distil")} == {"frozen", "all"}


def test_the_target_is_the_standardised_mean_of_the_measured_cells(screen_path: Path) -> None:
    settings = CellsSettings(files=(str(screen_path),), auxiliary_key="X_pca")
    cells = TrainingCells.open(settings, CellSplit(val=0.2, test=0.2))
    assert cells.auxiliary is not None
    embedding = ad.read_h5ad(screen_path).obsm["X_pca"].astype(np.float64)
    training = embedding[np.concatenate([cells.part("train"), cells.controls("train")])]
    for part in ("train", "val"):
        sampler = CellSetSampler(cells, part, set_size=50, sets_per_batch=3, seed=1)  # type: ignore[arg-type]
        batch = sampler.batch(0, 0)
        for row, numbers in enumerate(batch.target_rows_BS):
            expected = (embedding[numbers[numbers >= 0]].mean(0) - training.mean(0)) / training.std(0)
            assert batch.auxiliary_BA is not None
            np.testing.assert_allclose(batch.auxiliary_BA[row], expected, rtol=1e-4, atol=1e-4)


def test_what_goes_together_is_checked(screen_path: Path, tmp_path: Path) -> None:
    for changes, message in (
        (("loss.distil=1",), "name its obsm matrix in data.auxiliary_key"),
        (("data.auxiliary_key=X_pca",), "read by nothing"),
        ((*HEADS, "compute.strategy=fsdp"), "take ddp"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(screen_path, *changes)
    with pytest.raises(DataError, match="X_nowhere"):
        run(tiny_config(screen_path, "data.auxiliary_key=X_nowhere", "loss.distil=1"), tmp_path / "run")
    broken = ad.read_h5ad(screen_path)
    broken.obsm["X_pca"][::7, 3] = np.nan
    broken.write_h5ad(tmp_path / "broken.h5ad")
    with pytest.raises(DataError, match="'X_pca', the auxiliary embedding, holds values that are not finite"):
        run(tiny_config(tmp_path / "broken.h5ad", *HEADS), tmp_path / "other")


def test_the_heads_start_by_the_seed(whole: Path, screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, *HEADS, "seed=1"), tmp_path / "run")
    mine, other = last_weights(tmp_path / "run"), last_weights(whole)
    assert not torch.equal(mine["auxiliary.distil.weight"], other["auxiliary.distil.weight"])
