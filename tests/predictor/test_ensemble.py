"""Several checkpoints as one: the mean of their effects, every member in the record, what does not fit refused."""

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.cli.app import app
from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import read_record
from steval.data.columns import Columns
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.measure import measure_file
from steval.errors import ConfigError
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.ensemble import Ensemble
from steval.predictor.requests import PredictionRequest, RequestItem

SIMPLE = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())
NETWORK = DecodingSettings(kind="carried", effect_cells=16)


@pytest.fixture(scope="module")
def members(checkpoint, cells, tmp_path_factory):
    """The tiny checkpoint as a simple model, and as its network with another set size and other weights."""
    effects, _ = measure_file(CellFile.wrap(cells), Columns(cell_type=None))
    found = []
    for name, decoding, factor, size in (("a", SIMPLE, 1.0, None), ("b", NETWORK, 1.5, 8)):
        model = checkpoint.manifest.model
        model = model if size is None else model.model_copy(update={"cell_set_size": size})
        path = tmp_path_factory.mktemp("members") / f"{name}.safetensors"
        save_checkpoint(
            path, manifest=checkpoint.manifest.model_copy(update={"decoding": decoding, "model": model}),
            weights={key: value * factor for key, value in checkpoint.weights.items()}, features=checkpoint.features,
            controls=checkpoint.controls, effects=effects,
        )  # fmt: skip
        found.append(load_checkpoint(path))
    return found


def asked():
    names = ("SRC", "MED12", "non-targeting")
    return PredictionRequest(items=tuple(RequestItem(perturbation=name, num_cells=30) for name in names), seed=3)


def effects_of(member, pool):
    plan = member.plan(asked(), pool)
    return member.effects(plan, plan.items)


def cells_of(predictor, pool):
    return np.concatenate([block.cells for block in predictor.blocks(predictor.plan(asked(), pool))])


def test_cells_carry_the_mean_of_the_members_effects(members, cells):
    pool = cell_controls(CellFile.wrap(cells), members[0].manifest)
    first, second = (Predictor(member, device="cpu") for member in members)
    ensemble = Ensemble([first, second])
    effects = [np.mean(pair, axis=0) for pair in zip(effects_of(first, pool), effects_of(second, pool), strict=True)]
    assert np.abs(effects_of(first, pool)[0] - effects_of(second, pool)[0]).max() > 0.01
    plan = first.plan(asked(), pool)
    alone = {item.perturbation: effect for item, effect in zip(plan.items, effects, strict=True)}
    found = cells_of(ensemble, pool)
    for row, item in enumerate(plan.items):
        drawn = next(iter(item.sets(3, plan.set_size)))
        generator = drawn.generator("carry")
        controls = pool.measured(np.concatenate([one.control_indices for one in item.sets(3, plan.set_size)]))
        expected = SIMPLE.carried(
            controls, plan.control_mean(item), alone[item.perturbation], generator, first.manifest.target_sum
        )
        np.testing.assert_array_equal(found[30 * row : 30 * (row + 1)], expected.cells.toarray())


def test_one_member_alone_predicts_as_ever(members, cells):
    pool = cell_controls(CellFile.wrap(cells), members[0].manifest)
    for member in members:
        predictor = Predictor(member, device="cpu")
        np.testing.assert_array_equal(cells_of(Ensemble([predictor]), pool), cells_of(predictor, pool))


def test_the_command_takes_several_and_records_every_digest(members, cells_path, tmp_path):
    out = tmp_path / "both.h5ad"
    paths = [str(member.path) for member in members]
    found = CliRunner().invoke(
        app, ["predict", *paths, "-o", str(out), "--controls", str(cells_path), "-p", "SRC", "-n", "20"]
    )
    assert found.exit_code == 0, found.output
    record = read_record(ad.read_h5ad(out).uns)["details"]["predictor"]["ensemble"]
    assert [one["digest"] for one in record] == [member.digest for member in members]
    assert [one["decoding"]["network_weight"] for one in record] == [0.0, 1.0]


def test_what_does_not_fit_together_is_refused_with_all_reasons(members, checkpoint, cells, tmp_path):
    pool = cell_controls(CellFile.wrap(cells), members[0].manifest)
    one, plain = Predictor(members[0], device="cpu"), Predictor(checkpoint, device="cpu")
    with pytest.raises(ConfigError, match="given twice"):
        Ensemble([one, one])
    with pytest.raises(ConfigError, match=r"steval calibrate[\s\S]*as the network puts its cells out"):
        Ensemble([one, plain]).plan(asked(), pool)
    other = tmp_path / "other.safetensors"
    manifest = members[0].manifest.model_copy(update={"target_sum": 1234.0})
    save_checkpoint(
        other, manifest=manifest, weights=checkpoint.weights, features=checkpoint.features, controls=checkpoint.controls,
        effects=members[0].effects,
    )  # fmt: skip
    same = one.manifest
    for name, value in (("input_key", "X_pca"), ("input_dim", 7)):
        read = Predictor(members[1], device="cpu")
        read.manifest = same.model_copy(update={"model": same.model.model_copy(update={name: value})})
        with pytest.raises(ConfigError, match=f"differ in {name.replace('_', ' ')}"):
            Ensemble([one, read])
    with pytest.raises(ConfigError, match="differ in target sum"):
        Ensemble([one, Predictor(load_checkpoint(other), device="cpu")])
    found = CliRunner().invoke(app, ["predict", str(one.path), str(one.path), "-o", str(one.path), "-p", "SRC"])
    assert found.exit_code == 2
