"""Where the layers that a run draws anew start: the formulas, where they apply, and that the run says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from steval.checkpoints.store import load_checkpoint
from steval.data.effects.measure import measure_training
from steval.data.splits.assignment import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.model.network import StateTransition
from steval.trainer.new_layers import encoder_for_features, last_layer, outputs_from_effects, principal_axes
from steval.trainer.settings.network import NetworkSettings, plan_network
from support.tiny_runs import run, tiny_config

ONE_STEP = "phases=[{name: all, steps: 1}]"
PLAIN = ("network.head=plain", ONE_STEP)
ENCODER, OUTPUTS = "perturbation encoder, first layer", "project_out, last layer"


def test_axes_are_the_right_singular_vectors_in_order() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 40)) * np.array([5, 4, 3, 2, 1, 0.0])[:, None]
    axes, spread = principal_axes(rows, 4)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(spread, values[:4], rtol=1e-10)
    np.testing.assert_allclose(np.abs((axes * vectors[:4]).sum(axis=1)), 1.0, rtol=1e-10)
    assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) > 0).all()
    assert len(principal_axes(rows, 40)[1]) == 5, "the sixth direction is empty"


def test_the_last_layer_spans_what_the_effects_share_and_starts_at_their_mean(screen_path: Path) -> None:
    cells = TrainingCells.open(CellsSettings(files=(str(screen_path),)), CellSplit(val=0.2, test=0.2))
    model = plan_network(NetworkSettings(hidden_dim=16, num_heads=2), cells, 8, None)
    effects, _ = measure_training(cells)
    tensors, num_axes = outputs_from_effects(model, effects)
    name = last_layer(model)
    trust = effects.num_cells / (effects.num_cells + 32)
    mean = (trust[:, None] * effects.effects).sum(axis=0) / trust.sum()
    np.testing.assert_allclose(tensors[f"{name}.bias"].numpy(), mean, atol=1e-6)
    weight = tensors[f"{name}.weight"].numpy()
    assert num_axes == min(8, effects.num_pairs - 1) and not weight[:, num_axes:].any()
    centred = (effects.effects - mean) * np.sqrt(trust / trust.sum())[:, None]
    best = np.linalg.svd(centred, compute_uv=False)[:num_axes]
    np.testing.assert_allclose(np.linalg.norm(weight[:, :num_axes], axis=0), best, rtol=1e-4)
    assert StateTransition(model).load_state_dict(tensors, strict=False).unexpected_keys == []


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(np.eye(5, dtype=np.float32), id="one-hot"),
        pytest.param(np.random.default_rng(1).normal(3.0, 0.01, (7, 4)).astype(np.float32), id="far from zero"),
    ],
)
def test_the_encoder_sees_standardised_features(features: np.ndarray) -> None:
    drawn = {
        "pert_encoder.0.weight": torch.randn(8, features.shape[1], generator=torch.Generator().manual_seed(0)),
        "pert_encoder.0.bias": torch.arange(8.0),
    }
    changed, scale = encoder_for_features(drawn, torch.from_numpy(features))
    centred = features - features.mean(axis=0)
    standard = centred * np.sqrt(features.shape[1] / (centred**2).sum(axis=1).mean())
    assert (standard**2).sum(axis=1).mean() == pytest.approx(features.shape[1], rel=1e-5)
    wanted = standard @ drawn["pert_encoder.0.weight"].numpy().T + drawn["pert_encoder.0.bias"].numpy()
    found = features @ changed["pert_encoder.0.weight"].numpy().T + changed["pert_encoder.0.bias"].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-2 if scale > 10 else 1e-4)


def test_features_that_are_all_alike_leave_the_encoder_as_drawn() -> None:
    drawn = {"pert_encoder.0.weight": torch.ones(2, 3), "pert_encoder.0.bias": torch.zeros(2)}
    assert encoder_for_features(drawn, torch.ones(4, 3)) == ({}, 1.0)


@pytest.mark.parametrize(
    ("overrides", "encoder", "outputs"),
    [
        pytest.param(PLAIN, "standardised", "principal axes", id="data"),
        pytest.param((*PLAIN, "network.initial_weights=random"), "drawn at random", "drawn at random", id="random"),
        pytest.param((ONE_STEP,), "standardised", "the head down-then-up stands behind it", id="bottleneck"),
        pytest.param((*PLAIN, "network.predict_residual=false"), "standardised", "not added", id="whole"),
    ],
)
def test_a_run_says_where_its_new_layers_start(
    screen_path: Path, tmp_path: Path, overrides: tuple[str, ...], encoder: str, outputs: str
) -> None:
    run(tiny_config(screen_path, *overrides), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "run.json").read_text())["new_layers"]
    assert encoder in said[ENCODER] and outputs in said[OUTPUTS]


def test_layers_of_a_checkpoint_stay_as_they_are(screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, *PLAIN), tmp_path / "first")
    first = load_checkpoint(tmp_path / "first" / "checkpoints" / "best-val.safetensors")
    still = ("network.head=plain", "phases=[{name: all, trains: [top], steps: 1}]")
    run(tiny_config(screen_path, *still), tmp_path / "second", init_from=first.path)
    said = json.loads((tmp_path / "second" / "run.json").read_text())["new_layers"]
    assert said == {ENCODER: "the checkpoint's", OUTPUTS: "the checkpoint's"}
    second = load_checkpoint(tmp_path / "second" / "checkpoints" / "best-val.safetensors")
    for name in ("pert_encoder.0.weight", f"{last_layer(first.manifest.model)}.weight"):
        assert torch.equal(first.weights[name], second.weights[name])
