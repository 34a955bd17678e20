"""The main job end to end on the packaged real cells, through the same functions as the command line."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.manifest import read_manifest
from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.cli.app import app
from steval.data.cells.record import read_record
from steval.data.effects.decoding import DecodingSettings
from steval.workflows.demo import DemoResult, run_demo
from steval.workflows.score import ScoreRequest, score_predictions


def test_a_file_is_no_place_for_a_demo(tmp_path):
    (tmp_path / "file").write_text("kept")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file"), "--overwrite"])
    assert (result.exit_code, (tmp_path / "file").read_text()) == (2, "kept")
    assert "is a file" in result.output


def test_everything_is_where_the_design_says(demo: DemoResult):
    run = demo.directory / "run"
    for path in (
        run / "config.yaml", run / "metrics.csv", run / "run.json", run / "checkpoints" / "last.ckpt",
        demo.score_dir / "results.parquet", demo.score_dir / "results.csv", demo.score_dir / "breakdown.csv",
        demo.score_dir / "score.json", demo.score_dir / "integrity.csv", demo.score_dir / "report.html",
    ):  # fmt: skip
        assert path.is_file(), path
    assert demo.checkpoint == run / "checkpoints" / "best-val.safetensors"
    manifest = read_manifest(demo.checkpoint)
    assert manifest.training is not None
    assert [phase.name for phase in manifest.training.phases][:1] == ["frozen"]
    assert manifest.evaluation is not None and manifest.training_data is not None
    assert manifest.warmup is not None


def test_predictions_hold_predicted_cells_and_the_measured_controls(demo: DemoResult):
    preds, real = ad.read_h5ad(demo.preds), ad.read_h5ad(demo.directory / "data" / "evaluation.h5ad")
    assert list(preds.var_names) == list(real.var_names)
    assert preds.obs["target_gene"].value_counts().to_dict() == real.obs["target_gene"].value_counts().to_dict()
    assert set(preds.obs["cell_type"]) == {"H1"}
    record = read_record(preds.uns)
    assert (record["scale"], record["target_sum"]) == ("lognorm", 10_000.0)
    control = (preds.obs["target_gene"] == "non-targeting").to_numpy()
    measured = real[(real.obs["target_gene"] == "non-targeting").to_numpy()]
    np.testing.assert_array_equal(np.sort(preds[control].X.sum(axis=1).A1), np.sort(measured.X.sum(axis=1).A1))


def test_no_held_out_cell_was_trained_on(demo: DemoResult):
    data = demo.directory / "data"
    train, held_out = ad.read_h5ad(data / "train.h5ad"), ad.read_h5ad(data / "evaluation.h5ad")
    perturbed = held_out.obs_names[(held_out.obs["target_gene"] != "non-targeting").to_numpy()]
    assert len(perturbed) == 200
    assert not set(perturbed) & set(train.obs_names)


def test_integrity_finds_nothing_in_the_demo(demo: DemoResult):
    integrity = demo.report.integrity
    assert integrity is not None
    assert integrity.filter(pl.col("status").is_in(["warn", "fail"])).to_dicts() == []


def test_scoring_again_from_the_checkpoint_prints_the_same_table(demo: DemoResult):
    again = demo.directory / "again.score"
    result = CliRunner().invoke(app, ["score", str(demo.checkpoint), str(demo.preds), "-o", str(again)])
    assert result.exit_code == 0, result.output
    assert "discrimination_score_l1" in result.stdout and "Overall score" in result.stdout
    for name in ("results.csv", "breakdown.csv"):
        assert (again / name).read_bytes() == (demo.score_dir / name).read_bytes()


@pytest.mark.peer
def test_raw_values_equal_what_cell_eval_run_prints_for_the_same_two_files(demo: DemoResult, tmp_path: Path):
    script = Path(sys.executable).with_name("cell-eval")
    real = demo.directory / "data" / "evaluation.h5ad"
    subprocess.run(
        [str(script), "run", "-ap", str(demo.preds), "-ar", str(real), "--pert-col", "target_gene",
         "--control-pert", "non-targeting", "--profile", "vcc", "--num-threads", "2", "-o", str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    theirs = pl.read_csv(tmp_path / "results.csv").sort("perturbation")
    ours = demo.report.results.sort("perturbation")
    assert ours["perturbation"].to_list() == theirs["perturbation"].to_list()
    for metric in ("overlap_at_N", "mae", "discrimination_score_l1"):
        np.testing.assert_allclose(ours[metric], theirs[metric], atol=1e-6, rtol=0)


def test_an_existing_directory_is_not_touched(demo: DemoResult):
    result = CliRunner().invoke(app, ["demo", "--out", str(demo.directory)])
    assert result.exit_code == 2
    assert "is there already" in result.stderr


@pytest.mark.slow
def test_synthetic_demo_finds_known_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("steval.workflows.demo.CHALLENGE_GENES", 400)
    result = run_demo(tmp_path / "demo", synthetic=True, overrides=("loggers=[csv]",), device="cpu")
    assert result.recovered is not None
    assert len(result.recovered) == 8
    assert result.recovered["correlation"].median() > 0.3


def test_features_make_a_ridge_baseline_and_one_hot_rows_do_not(demo: DemoResult, tmp_path: Path):
    checkpoint = load_checkpoint(demo.checkpoint)
    assert "ridge" not in set(demo.report.baselines["baseline"])
    mixed = torch.randn(checkpoint.features.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "featured.safetensors"
    plain = checkpoint.manifest.model_copy(update={"decoding": DecodingSettings()})
    save_checkpoint(path, manifest=plain, weights=checkpoint.weights, features=mixed)
    report, _ = score_predictions(ScoreRequest(preds=demo.preds, checkpoint=path, out=tmp_path / "score"))
    assert "ridge" in set(report.baselines["baseline"])
