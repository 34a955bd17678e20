"""Perturbation features: rows by name; a control may be missing, nothing else."""

import numpy as np
import pytest

from steval.data.training.features import feature_rows, one_hot
from steval.errors import DataError

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
