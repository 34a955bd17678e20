"""A network whose finite weights overflow: nothing that it predicts is ever written."""

import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.store import Checkpoint, save_checkpoint
from steval.cli.app import app
from steval.errors import CheckpointError
from steval.workflows.finetune import warmup_record


@pytest.fixture(scope="module")
def overflowing(checkpoint, tmp_path_factory) -> Checkpoint:
    """The checkpoint with its last weights as large as float32 goes."""
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    weights["project_out.0.weight"].fill_(3e38)
    path = tmp_path_factory.mktemp("overflowing") / "grown.safetensors"
    save_checkpoint(
        path,
        manifest=checkpoint.manifest,
        weights=weights,
        features=checkpoint.features,
        controls=checkpoint.controls,
    )
    return dataclasses.replace(checkpoint, path=path, weights=weights)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="cells"),
        pytest.param(["--layout", "dense"], id="dense"),
        pytest.param(["--output", "mean"], id="mean"),
        pytest.param(["--scale", "counts"], id="counts"),
        pytest.param(["--clip", "0:12"], id="a limit does not hide it"),
        pytest.param(["--no-include-controls", "--dtype", "bf16"], id="bf16"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_predictions_that_are_not_finite_are_exit_3_and_no_file(overflowing, tmp_path, options):
    out = tmp_path / "p.h5ad"
    result = CliRunner().invoke(app, ["predict", str(overflowing.path), "-o", str(out), "--cells", "20", *options])
    said = " ".join(result.output.split())
    assert result.exit_code == 3, said
    assert "predicts values that are not finite" in said
    assert "values are NaN or infinite" in said
    assert "diverged" in said
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_records_a_prediction_that_is_not_finite(checkpoint, overflowing):
    assert np.isfinite(warmup_record(checkpoint).mean).all()
    with pytest.raises(CheckpointError, match="no checkpoint to use"):
        warmup_record(overflowing)


def test_the_weights_are_finite_themselves(overflowing):
    assert all(torch.isfinite(tensor).all() for tensor in overflowing.weights.values())
