"""Unseen perturbations: by their features, or refused."""

import numpy as np
import pytest
import torch

from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.errors import CheckpointError, ConfigError, DataError
from steval.predictor.features import is_one_hot, with_features
from support.predictor_models import manifest_for, random_weights, tiny_config


@pytest.fixture
def described(cells, tmp_path):
    """A checkpoint whose perturbations are described by six random numbers."""
    config = tiny_config()
    manifest = manifest_for(config, cells)
    features = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "described.safetensors"
    save_checkpoint(path, manifest=manifest, weights=random_weights(config), features=features)
    return load_checkpoint(path)


def write_features(path, table):
    np.savez(path, names=np.array(list(table)), features=np.array(list(table.values()), dtype=np.float32))
    return path


def test_new_names_are_added_and_marked_untrained(described, tmp_path):
    new = torch.arange(6, dtype=torch.float32)
    known = described.feature_rows(["SRC"])[0]
    path = write_features(tmp_path / "f.npz", {"NEW1": new.numpy(), "SRC": known.numpy(), "NEW2": -new.numpy()})
    extended = with_features(described, path)
    assert torch.equal(extended.feature_rows(["NEW2", "NEW1"]), torch.stack([-new, new]))
    assert {entry.name for entry in extended.manifest.perturbations if not entry.trained} == {"NEW1", "NEW2"}
    assert torch.equal(extended.feature_rows(["SRC"]), described.feature_rows(["SRC"]))


def test_features_of_another_model_are_refused(described, tmp_path):
    path = write_features(tmp_path / "f.npz", {"SRC": np.zeros(6), "NEW": np.ones(6)})
    with pytest.raises(DataError, match="describes 1 known perturbation otherwise"):
        with_features(described, path)


def test_one_hot_checkpoints_cannot_take_features(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="one-hot"):
        with_features(checkpoint, tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        pytest.param(np.eye(4), True, id="identity"),
        pytest.param(np.eye(4)[[2, 0, 1]], True, id="permuted rows"),
        pytest.param(np.vstack([np.eye(3), np.zeros(3)]), True, id="zero control"),
        pytest.param(np.eye(4) * 0.5, False, id="other values"),
        pytest.param(np.ones((2, 4)), False, id="several ones"),
    ],
)
def test_one_hot(features, expected):
    assert is_one_hot(torch.tensor(features, dtype=torch.float32)) is expected


def test_features_of_another_length(described, tmp_path):
    path = write_features(tmp_path / "f.npz", {"NEW": np.ones(5)})
    with pytest.raises(DataError, match="6 numbers each\n  - 'NEW' has 5 numbers"):
        with_features(described, path)


def test_not_a_number(described, tmp_path):
    path = write_features(tmp_path / "f.npz", {"NEW": np.full(6, np.nan)})
    with pytest.raises(CheckpointError, match="NaN or infinite features of NEW"):
        with_features(described, path)
