"""The manifest file: shorthand, and every problem in one error."""

from pathlib import Path

import pytest

from steval.batch.settings import BatchManifest, out_dir
from steval.errors import ConfigError

BASE = {"checkpoints": ["a.safetensors"], "data": ["d.h5ad"]}


def test_paths_alone_are_entries():
    manifest = BatchManifest.parse({"checkpoints": ["a.safetensors"], "data": ["d.h5ad", "recorded"]})
    assert manifest.checkpoints[0].path == "a.safetensors"
    assert (manifest.data[0].real, manifest.data[1].recorded) == ("d.h5ad", True)
    assert manifest.requests[0].do == "both"


def test_results_go_beside_the_manifest_unless_told(tmp_path: Path):
    manifest = BatchManifest.parse(BASE)
    assert out_dir(manifest, tmp_path / "night.yaml") == tmp_path / "night.batch"
    assert out_dir(manifest.model_copy(update={"out": "x/y"}), tmp_path / "night.yaml") == tmp_path / "x" / "y"


def test_all_problems_are_listed_at_once():
    values = {**BASE, "chunks": 3, "run": {"worker": 2}, "score": {"integrity": "some"}, "data": []}
    with pytest.raises(ConfigError) as caught:
        BatchManifest.parse(values)
    text = "\n".join(caught.value.problems)
    assert "did you mean 'chunk'?" in text
    assert "did you mean 'workers'?" in text
    assert "score.integrity" in text
    assert "data: name at least one" in text


@pytest.mark.parametrize(
    ("request_values", "message"),
    [
        pytest.param({"do": "score"}, "predictions goes with do: score", id="score-without-predictions"),
        pytest.param({"do": "both", "predictions": "x"}, "predictions goes with", id="predictions-unasked"),
        pytest.param({"do": "both", "output": "mean"}, "cannot be scored", id="means-scored"),
        pytest.param({"cells": 10**12}, "less than or equal to 100000000 .*got 1000000000000", id="cells-without-end"),
        pytest.param({"file": "r.csv", "cells": 3}, "leave perturbations and cells out", id="file-and-cells"),
    ],
)
def test_contradictions_and_slips_are_refused(request_values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        BatchManifest.parse({**BASE, "requests": [request_values]})


def test_requests_have_names_of_their_own():
    with pytest.raises(ConfigError, match="more than once: all"):
        BatchManifest.parse({**BASE, "requests": [{}, {"do": "predict"}]})


def test_names_of_requests_stay_within_their_directory():
    manifest = BatchManifest.parse({**BASE, "requests": [{"name": "../../up/500 cells"}]})
    assert manifest.requests[0].name == "up-500-cells"
    with pytest.raises(ConfigError, match="more than once: a-b"):
        BatchManifest.parse({**BASE, "requests": [{"name": "a b"}, {"name": "a/b"}]})
