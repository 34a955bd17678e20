"""Decoded cells: means as the settings say, controls as planned, whatever else is asked for; what cannot be is refused."""

import dataclasses

import anndata as ad
import numpy as np
import pytest

from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import read_record
from steval.data.columns import Columns
from steval.data.effects.anchors import Anchors, AnchorSettings
from steval.data.effects.carry import sensitivity
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.measure import measure_file
from steval.errors import CheckpointError, ConfigError
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import PredictionJob, run_job
from steval.predictor.requests import PredictionRequest, RequestItem

SIMPLE = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())


@pytest.fixture(scope="module")
def calibrated(checkpoint, cells, tmp_path_factory):
    """The tiny checkpoint with training effects and a decoding of each kind beside each other."""
    effects, _ = measure_file(CellFile.wrap(cells), Columns(cell_type=None))
    path = tmp_path_factory.mktemp("calibrated") / "tiny.safetensors"
    manifest = checkpoint.manifest.model_copy(update={"decoding": SIMPLE})
    save_checkpoint(
        path, manifest=manifest, weights=checkpoint.weights, features=checkpoint.features, controls=checkpoint.controls,
        effects=effects,
    )  # fmt: skip
    return load_checkpoint(path)


def request(*names, cells=40, seed=0):
    return PredictionRequest(items=tuple(RequestItem(perturbation=name, num_cells=cells) for name in names), seed=seed)


def predicted(predictor, asked, cells):
    pool = cell_controls(CellFile.wrap(cells), predictor.manifest)
    found = {}
    for one in predictor.predict(asked, pool):
        found.setdefault(one.perturbation, []).append(one.cells)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def assert_same_up_to_the_total(found, expected, without):
    """Means are as expected but for one change of the log counts, which keeps the totals of cells without an effect."""
    reached = found.mean(axis=0)
    assert np.expm1(found).sum(axis=1).mean() == pytest.approx(np.expm1(without).sum(axis=1).mean(), rel=0.03)
    shown = sensitivity(expected)
    common = shown @ (reached - expected) / (shown @ shown)
    np.testing.assert_allclose(reached, np.maximum(expected + common * shown, 0), atol=5e-3)


def control_mean(cells):
    return cells.X[(cells.obs["target_gene"] == "non-targeting").to_numpy()].mean(axis=0)


def test_effects_and_decoding_survive_the_file(calibrated, cells):
    effects, _ = measure_file(CellFile.wrap(cells), Columns(cell_type=None))
    assert calibrated.effects.pairs() == effects.pairs()
    np.testing.assert_allclose(calibrated.effects.effects, effects.effects, rtol=1e-3, atol=1e-6)
    assert calibrated.manifest.decoding == SIMPLE


def test_the_simple_model_is_carried_exactly_and_leaves_the_control_alone(calibrated, cells):
    predictor = Predictor(calibrated, device="cpu")
    mean = np.asarray(control_mean(cells)).ravel()
    found = predicted(predictor, request("STAT1", "non-targeting"), cells)
    told = Anchors(calibrated.effects, AnchorSettings()).effects(["STAT1"], "all cells", mean)[0]
    np.testing.assert_allclose(found["non-targeting"].mean(axis=0), mean, atol=2e-5)
    assert_same_up_to_the_total(found["STAT1"], np.maximum(mean + told, 0), found["non-targeting"])
    assert predictor.facts(request("STAT1")).engine["decoding"] == SIMPLE.as_dict()


def test_the_networks_effect_is_its_mean_change_less_its_null_effect(calibrated, cells):
    carried = DecodingSettings(kind="carried", effect_cells=48, effect_scale=0.5)
    own = Predictor(calibrated, device="cpu", decoding=DecodingSettings())
    mean = np.asarray(control_mean(cells)).ravel()
    pool = cell_controls(CellFile.wrap(cells), own.manifest)
    changes = {}
    for one in own.predict(request("SRC", "non-targeting", cells=48), pool):
        change = one.cells.sum(axis=0) - pool.measured(one.control_indices).sum(axis=0)
        changes[one.perturbation] = changes.get(one.perturbation, 0) + np.asarray(change).ravel() / 48
    expected = np.maximum(mean + 0.5 * (changes["SRC"] - changes["non-targeting"]), 0)
    found = predicted(Predictor(calibrated, device="cpu", decoding=carried), request("SRC", "non-targeting"), cells)
    assert_same_up_to_the_total(found["SRC"], expected, found["non-targeting"])


@pytest.mark.parametrize(
    "decoding", [SIMPLE, DecodingSettings(kind="carried", effect_cells=16)], ids=["simple", "network"]
)
def test_neighbours_order_and_batch_size_change_nothing(calibrated, cells, decoding):
    one = Predictor(calibrated, device="cpu", decoding=decoding, batch_cells=16)
    other = Predictor(calibrated, device="cpu", decoding=decoding)
    alone = predicted(one, request("MED12"), cells)["MED12"]
    among = predicted(other, request("TET1", "MED12", "SRC"), cells)["MED12"]
    np.testing.assert_allclose(alone, among, rtol=1e-4, atol=1e-5)
    assert ((alone > 0) == (among > 0)).mean() > 0.999
    again = predicted(one, request("SRC", "MED12"), cells)["MED12"]
    np.testing.assert_array_equal(alone, again)


def test_what_the_network_puts_out_is_a_word_away(calibrated, checkpoint, cells_path, tmp_path):
    for path, source, decoding in (("a", checkpoint, "checkpoint"), ("b", calibrated, "network")):
        run_job(
            PredictionJob(
                checkpoint=source.path, out=tmp_path / f"{path}.h5ad", controls=cells_path, perturbations=("STAT1",),
                cells=20, decoding=decoding,
            )
        )  # fmt: skip
    first, second = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in "ab")
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())


@pytest.mark.parametrize("decoding", [SIMPLE, DecodingSettings(kind="carried", effect_cells=16)])
def test_effects_are_asked_for_in_parts_that_change_nothing(calibrated, cells, monkeypatch, decoding):
    asked = request("TET1", "MED12", "non-targeting", "SRC")
    whole = predicted(Predictor(calibrated, device="cpu", decoding=decoding), asked, cells)
    monkeypatch.setattr("steval.predictor.cells.decoding.ITEMS_AT_ONCE", 1)
    parts = predicted(Predictor(calibrated, device="cpu", decoding=decoding), asked, cells)
    assert list(parts) == list(whole)
    for name, found in whole.items():
        np.testing.assert_array_equal(parts[name], found)


def test_a_request_chooses_and_the_record_tells_what_was_done(calibrated, checkpoint, cells, cells_path, tmp_path):
    network, simple = DecodingSettings(), SIMPLE
    for source, choice, expected in (
        (calibrated, "checkpoint", simple),
        (calibrated, "carried", simple),
        (calibrated, "network", network),
        (checkpoint, "checkpoint", network),
        (checkpoint, "carried", DecodingSettings(kind="carried")),
    ):
        out = tmp_path / f"{source.path.stem}-{choice}-{source is calibrated}.h5ad"
        job = {"checkpoint": source.path, "out": out, "controls": cells_path, "perturbations": ("STAT1",), "cells": 20}
        run_job(PredictionJob(**job, decoding=choice))
        record = read_record(ad.read_h5ad(out).uns)["details"]["predictor"]["decoding"]
        assert record == expected.as_dict()


def test_a_decoding_that_the_checkpoint_cannot_do_is_refused(checkpoint, calibrated, tmp_path):
    with pytest.raises(ConfigError, match="carries no training effects"):
        Predictor(checkpoint, device="cpu", decoding=SIMPLE)
    manifest = calibrated.manifest
    with pytest.raises(CheckpointError, match="there are no training effects"):
        save_checkpoint(
            tmp_path / "x.safetensors", manifest=manifest, weights=calibrated.weights, features=calibrated.features
        )
    few = dataclasses.replace(calibrated.effects, **{
        name: getattr(calibrated.effects, name)[:, :-1] for name in ("effects", "control_means", "cell_variance")
    })  # fmt: skip
    with pytest.raises(CheckpointError, match="119 genes"):
        save_checkpoint(
            tmp_path / "x.safetensors", manifest=manifest, weights=calibrated.weights, features=calibrated.features,
            effects=few,
        )  # fmt: skip
