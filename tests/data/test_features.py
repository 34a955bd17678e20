"""Perturbation features: rows by name from every format; a control may be missing, nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steval.data.training.features import feature_rows, one_hot, read_features
from steval.errors import ConfigError, DataError

VECTORS = {"STAT1": [1.0, 2.0], "IRF1": [3.0, 4.0], "TP53": [5.0, 6.0]}


def test_one_hot_has_a_one_of_its_own_for_each_name() -> None:
    assert one_hot(3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert one_hot(3).dtype == np.float32


def test_rows_follow_the_names_and_a_missing_control_is_zero() -> None:
    rows = feature_rows(["TP53", "ctrl", "STAT1"], "ctrl", VECTORS)
    assert rows.tolist() == [[5, 6], [0, 0], [1, 2]]
    assert rows.dtype == np.float32
    assert feature_rows(["ctrl"], "ctrl", {"ctrl": [7.0]}).tolist() == [[7]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        pytest.param(
            VECTORS, r"'STAT2' has no vector; nearest: STAT1(?s:.*)'XYZ' has no vector", id="all that are missing"
        ),
        pytest.param(
            {"STAT2": [1.0], "XYZ": [1.0, 2.0]}, r"of one length, got shapes \[\(1,\), \(2,\)\]", id="lengths"
        ),
        pytest.param({"STAT2": [[1.0]], "XYZ": [[1.0]]}, r"one-dimensional", id="two-dimensional"),
        pytest.param({"STAT2": [1.0], "XYZ": [float("nan")]}, r"'XYZ' is not finite", id="NaN"),
        pytest.param({}, r"holds no vectors", id="empty"),
    ],
)
def test_what_does_not_fit_is_an_error(vectors: dict[str, list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        feature_rows(["STAT2", "ctrl", "XYZ"], "ctrl", vectors)


@pytest.mark.parametrize("kind", ["csv", "parquet index", "parquet column", "npz by name", "npz arrays"])
def test_every_format_reads_the_same(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame.from_dict(VECTORS, orient="index", columns=pd.Index(["a", "b"]))
    path = tmp_path / f"features.{kind.split()[0]}"
    if kind == "csv":
        frame.to_csv(path)
    elif kind == "parquet index":
        frame.to_parquet(path)
    elif kind == "parquet column":
        frame.reset_index(names="gene").to_parquet(path)
    elif kind == "npz by name":
        np.savez(path, **{name: np.array(vector) for name, vector in VECTORS.items()})
    else:
        np.savez(path, names=np.array(list(VECTORS)), features=np.array(list(VECTORS.values())))
    assert {name: vector.tolist() for name, vector in read_features(path).items()} == VECTORS


def test_files_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such perturbation feature file"):
        read_features(tmp_path / "none.csv")
    for name in ("broken.npz", "broken.parquet"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(DataError, match="cannot be read as perturbation features"):
            read_features(tmp_path / name)
    (tmp_path / "text.csv").write_text("name,a\nSTAT1,x\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "text.csv")
    (tmp_path / "twice.csv").write_text("name,a\nSTAT1,1\nSTAT1,2\n")
    with pytest.raises(DataError, match="more than one vector for: STAT1"):
        read_features(tmp_path / "twice.csv")
    (tmp_path / "features.pt").touch()
    with pytest.raises(ConfigError, match=r"\.npz, \.parquet, \.csv"):
        read_features(tmp_path / "features.pt")


def test_a_pickle_inside_an_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", STAT1=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "p.npz")
