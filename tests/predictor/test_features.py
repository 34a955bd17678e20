"""Unseen perturbations: by their features, or refused."""

import numpy as np
import pytest
import torch
from conftest import manifest_for, random_weights, tiny_config
from safetensors.torch import save_file

from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.errors import ConfigError, DataError
from steval.predictor.features import is_one_hot, with_features


@pytest.fixture
def described(cells, tmp_path):
    """A checkpoint whose perturbations are described by six random numbers."""
    config = tiny_config()
    manifest = manifest_for(config, cells)
    features = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "described.safetensors"
    save_checkpoint(path, manifest=manifest, weights=random_weights(config), features=features)
    return load_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "csv", "tsv"])
def test_new_names_are_added_and_marked_untrained(described, tmp_path, kind):
    path = tmp_path / f"features.{kind}"
    new = torch.arange(6, dtype=torch.float32)
    table = {"NEW1": new, "SRC": described.feature_rows(["SRC"])[0].clone(), "NEW2": -new}
    if kind == "safetensors":
        save_file(table, path)
    else:
        separator = "," if kind == "csv" else "\t"
        path.write_text("\n".join(separator.join([name, *map(repr, value.tolist())]) for name, value in table.items()))
    extended = with_features(described, path)
    assert torch.equal(extended.feature_rows(["NEW2", "NEW1"]), torch.stack([-new, new]))
    assert {entry.name for entry in extended.manifest.perturbations if not entry.trained} == {"NEW1", "NEW2"}
    assert torch.equal(extended.feature_rows(["SRC"]), described.feature_rows(["SRC"]))


def test_features_of_another_model_are_refused(described, tmp_path):
    save_file({"SRC": torch.zeros(6), "NEW": torch.ones(6)}, tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="describes 1 known perturbations otherwise"):
        with_features(described, tmp_path / "f.safetensors")


def test_one_hot_checkpoints_cannot_take_features(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="one-hot"):
        with_features(checkpoint, tmp_path / "absent.csv")


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


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        pytest.param("f.csv", "NEW,1,2\n", "'NEW' has 2 numbers", id="short"),
        pytest.param("f.csv", "NEW,1,2,3,4,5,nan\n", "NaN", id="nan"),
        pytest.param("f.csv", "NEW,a,b,c,d,e,f\n", "could not convert", id="text"),
        pytest.param("f.csv", "N,1,2,3,4,5,6\nN,1,2,3,4,5,6\n", "occurs twice", id="twice"),
        pytest.param("f.csv", "", "holds no features", id="empty"),
        pytest.param("f.safetensors", "rubbish", "not a readable safetensors", id="rubbish"),
    ],
)
def test_bad_files(described, tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        with_features(described, tmp_path / name)


def test_pickles_are_not_opened(described, tmp_path):
    (tmp_path / "f.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="may run code"):
        with_features(described, tmp_path / "f.pt")
