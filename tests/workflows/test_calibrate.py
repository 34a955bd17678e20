"""A finished run is calibrated; `steval calibrate` does so for any checkpoint, into a new file."""

import dataclasses
import json

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.checkpoints.inspection import inspect_checkpoint
from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.cli.app import app
from steval.data.cells.record import KEY, read_record, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.expected import ExpectedErrorModel
from steval.data.reference import DataReference, FileReference
from steval.data.synthetic import generate
from steval.errors import ConfigError
from steval.signals import TerminatedError
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.stopping import RunInterrupted
from steval.workflows.checkpoints.calibrate import calibrate, calibrated
from steval.workflows.doctor import diagnose
from steval.workflows.finetune import finetune_with_evaluation
from support.tiny_runs import tiny_config


def lognorm_screen(**changes) -> ad.AnnData:
    values = {"num_genes": 60, "num_perturbations": 10, "cells_per_perturbation": 16, "num_controls": 40}
    cells = generate(**{**values, "cell_types": ("X", "Y"), "counts_per_cell": 1500.0, "seed": 1, **changes}).cells
    cells.X = lognorm(cells.X, 10_000.0)
    cells.uns[KEY] = steval_record(made_by="test", scale="lognorm", target_sum=10_000.0, columns=Columns())
    return cells


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run on two cell types, of which the second holds perturbations out."""
    directory = tmp_path_factory.mktemp("calibrate")
    cells = lognorm_screen()
    cells.write_h5ad(directory / "cells.h5ad")
    names = sorted(set(cells.obs["target_gene"].astype(str)) - {"non-targeting"})
    split = {"by": "contexts", "cell_type_key": "cell_type", "val": {"Y": names[:3]}, "test": {"Y": names[3:6]}}
    config = tiny_config(directory / "cells.h5ad", data={"files": [str(directory / "cells.h5ad")], "split": split})
    told = []
    result = finetune_with_evaluation(config, directory / "run", device="cpu", report=told.append)
    return result, told, names


def test_a_finished_run_carries_effects_and_the_choice_with_its_evidence(finished):
    result, told, names = finished
    checkpoint = load_checkpoint(result.best)
    assert checkpoint.manifest.decoding.kind == "carried"
    pairs = set(checkpoint.effects.pairs())
    assert {(name, "X") for name in names} | {(name, "Y") for name in names[6:]} == pairs
    record = json.loads((result.run_dir / "run.json").read_text())["calibration"]
    assert record["decoding"] == checkpoint.manifest.decoding.as_dict()
    assert record["expected"]["pairs"] == 3
    assert record["expected"]["kind"] == "validation"
    assert len(record["network"]["candidates"]) == 4
    assert record["simple_model"]["pairs"] == 3 + 10 + 4
    assert any(notice.title.startswith("Calibration") for notice in told)
    found = inspect_checkpoint(result.best, verify=True)
    assert found["calibration"] == checkpoint.manifest.calibration
    assert found["parameters"]["total"] == sum(tensor.numel() for tensor in checkpoint.weights.values())


def test_predictions_say_how_wrong_they_are_expected_to_be(finished, tmp_path):
    """In `uns`, for each perturbation but the control; as the checkpoint's own decoding, or not at all."""
    result, _, names = finished
    model = ExpectedErrorModel.parse(load_checkpoint(result.best).manifest.calibration["expected_error"], "it")
    assert model.pairs == 3 + 10 + 4
    assert model.measured_cells == 16
    for decoding, expected in (("checkpoint", sorted(names[:2])), ("network", None)):
        out = tmp_path / f"{decoding}.h5ad"
        names_given = ",".join(names[:2])
        found = CliRunner().invoke(
            app,
            [
                "predict",
                str(result.best),
                "-o",
                str(out),
                "-p",
                names_given,
                "--cell-type",
                "Y",
                "--decoding",
                decoding,
            ],
        )
        assert found.exit_code == 0, found.output
        told = read_record(ad.read_h5ad(out).uns)["details"].get("expected_error")
        assert expected == (None if told is None else [one["perturbation"] for one in told])
        for one in told or ():
            assert one["cell_type"] == "Y"
            assert 0 < one["low"] <= one["mae"] <= one["high"] < 1


def test_the_command_writes_a_new_file_and_leaves_its_input(finished, tmp_path):
    result, _, _ = finished
    before = result.best.read_bytes()
    arguments = ["calibrate", str(result.run_dir), "-o", str(tmp_path / "new.safetensors"), "--seed", "3", "--json"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert result.best.read_bytes() == before
    said = json.loads(answer.stdout)
    assert said["decoding"] == load_checkpoint(tmp_path / "new.safetensors").manifest.decoding.as_dict()


def test_a_checkpoint_without_training_data_carries_the_networks_effect(finished, tmp_path):
    result, _, names = finished
    checkpoint = load_checkpoint(result.best)
    manifest = checkpoint.manifest.model_copy(
        update={"training_data": None, "decoding": DecodingSettings(), "calibration": None}
    )
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(
        bare, manifest=manifest, weights=checkpoint.weights, features=checkpoint.features, controls=checkpoint.controls
    )
    with pytest.raises(ConfigError, match="--real"):
        calibrate(bare, None, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    cells = lognorm_screen()
    held = (cells.obs["cell_type"] == "Y") & cells.obs["target_gene"].isin([*names[:3], "non-targeting"])
    cells[held.to_numpy()].copy().write_h5ad(tmp_path / "val.h5ad")
    found = calibrated(load_checkpoint(bare), tmp_path / "val.h5ad")
    assert found.decoding.network_weight == 1
    assert found.decoding.anchor is None
    assert found.record["expected"]["pairs"] == 3
    assert np.isfinite(found.record["expected"]["leaderboard"])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("train", "hold cells that the checkpoint was trained on: they do not tell how well it predicts others"),
        ("test", "hold cells that the checkpoint is to be tested on: a score on them would be no evidence afterwards"),
        ("all", "hold cells that the checkpoint was trained on"),
        ("no controls", "holds nothing to choose by: a pair needs 8 cells of a perturbation and two control cells"),
    ],
)
@pytest.mark.parametrize("as_counts", [False, True])
def test_cells_that_cannot_judge_the_checkpoint_are_refused(finished, tmp_path, part, says, as_counts):
    result, _, names = finished
    cells = lognorm_screen()
    if as_counts:
        cells = generate(
            num_genes=60, num_perturbations=10, cells_per_perturbation=16, num_controls=40, cell_types=("X", "Y"),
            counts_per_cell=1500.0, seed=1,
        ).cells  # fmt: skip
    labels, in_y = cells.obs["target_gene"], (cells.obs["cell_type"] == "Y").to_numpy()
    kept = {
        "train": (labels.isin(names[6:]) | (labels == "non-targeting")).to_numpy(),
        "test": in_y & labels.isin([*names[3:6], "non-targeting"]).to_numpy(),
        "all": np.ones(len(cells), dtype=bool),
        "no controls": in_y & labels.isin(names[:3]).to_numpy(),
    }[part]
    cells[kept].copy().write_h5ad(tmp_path / "given.h5ad")
    with pytest.raises(ConfigError, match=says):
        calibrate(result.run_dir, tmp_path / "given.h5ad", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_file_that_a_checkpoint_is_to_be_scored_on_is_refused_as_well(finished, tmp_path):
    """Named by `data.evaluation_file`; a part of the split is not all that may be kept for the test."""
    result, _, names = finished
    cells = lognorm_screen(seed=2)
    cells.obs["target_gene"] = lognorm_screen().obs["target_gene"].to_numpy()
    cells.var_names = lognorm_screen().var_names
    kept = (cells.obs["cell_type"] == "Y") & cells.obs["target_gene"].isin([*names[:3], "non-targeting"])
    cells[kept.to_numpy()].copy().write_h5ad(tmp_path / "evaluation.h5ad")
    checkpoint = load_checkpoint(result.best)
    evaluation = DataReference(
        files=(FileReference.of(tmp_path / "evaluation.h5ad"),), columns=checkpoint.manifest.columns, scale="lognorm",
        target_sum=10_000.0,
    )  # fmt: skip
    found = calibrated(checkpoint, tmp_path / "evaluation.h5ad")
    assert found.record["expected"]["pairs"] == 3
    tested = dataclasses.replace(checkpoint, manifest=checkpoint.manifest.model_copy(update={"evaluation": evaluation}))
    with pytest.raises(ConfigError, match=r"3 pairs of 3 in .* hold cells that the checkpoint is to be tested on"):
        calibrated(tested, tmp_path / "evaluation.h5ad")


def test_other_cells_of_pairs_that_trained_may_judge(finished, tmp_path):
    """Another replicate of the same perturbations."""
    cells = lognorm_screen()
    other = lognorm_screen(seed=2)
    other.var_names, other.obs["target_gene"] = cells.var_names, cells.obs["target_gene"].to_numpy()
    other[(other.obs["cell_type"] == "X").to_numpy()].copy().write_h5ad(tmp_path / "given.h5ad")
    found = calibrated(load_checkpoint(finished[0].best), tmp_path / "given.h5ad")
    assert found.record["expected"]["pairs"] == 10


@pytest.mark.parametrize(("stopped", "code"), [(KeyboardInterrupt, 130), (TerminatedError, 143)])
def test_a_run_that_is_stopped_while_it_is_calibrated_says_so_and_goes_on(
    tmp_path, monkeypatch, finished, stopped, code
):
    cells = lognorm_screen()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    names = sorted(set(cells.obs["target_gene"].astype(str)) - {"non-targeting"})
    split = {"by": "contexts", "cell_type_key": "cell_type", "val": {"Y": names[:3]}, "test": {"Y": names[3:6]}}
    config = tiny_config(tmp_path / "cells.h5ad", data={"files": [str(tmp_path / "cells.h5ad")], "split": split})

    def stop(*_: object, **__: object) -> None:
        raise stopped

    with monkeypatch.context() as patch:
        patch.setattr("steval.workflows.checkpoints.calibrate.calibrated", stop)
        with pytest.raises(RunInterrupted, match=r"Go on with: steval finetune --resume \S+/run") as caught:
            finetune_with_evaluation(config, tmp_path / "run", device="cpu")
    assert caught.value.exit_code == code
    record = RunDirectory(tmp_path / "run")
    assert record.read_record()["status"] == "calibrating"
    assert any("choosing how predictions become cells" in one.evidence for one in diagnose(tmp_path / "run"))
    result = finetune_with_evaluation(None, tmp_path / "run", resume=True, device="cpu")
    assert record.read_record()["status"] == "finished"
    assert load_checkpoint(result.best).manifest.decoding == load_checkpoint(finished[0].best).manifest.decoding


def test_what_cannot_be_carried_is_refused(finished, tmp_path):
    checkpoint = load_checkpoint(finished[0].best)
    embedding = checkpoint.manifest.model_copy(update={"output_genes": None})
    with pytest.raises(ConfigError, match="cannot carry effects"):
        calibrated(type(checkpoint)(**{**vars(checkpoint), "manifest": embedding}))
