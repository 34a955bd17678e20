"""Training effects measured, stored and told from one another: known arithmetic."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.columns import Columns
from steval.data.effects.anchors import SIMPLE_MODELS, Anchors, AnchorSettings
from steval.data.effects.measure import measure_file, measure_training
from steval.data.effects.record import TrainingEffects
from steval.data.effects.unseen import fit_features
from steval.data.splits.settings import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.errors import DataError

CONTROL = "non-targeting"


def known_cells(seed=0, contexts=("X", "Y"), num_genes=6):
    """Lognorm cells with labels; the last perturbation is missing in the last context."""
    generator = np.random.default_rng(seed)
    blocks, labels, types = [], [], []
    for context in contexts:
        for name, number in ((CONTROL, 9), ("A", 4), ("B", 5)):
            if (name, context) == ("B", contexts[-1]):
                continue
            blocks.append(generator.random((number, num_genes)) * (generator.random((number, num_genes)) < 0.6))
            labels += [name] * number
            types += [context] * number
    obs = pd.DataFrame({"target_gene": labels, "cell_type": types}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"g{i}" for i in range(num_genes)])
    uns = {"steval": {"scale": "lognorm", "target_sum": 100.0}}
    return ad.AnnData(sp.csr_matrix(np.vstack(blocks).astype(np.float32)), obs=obs, var=var, uns=uns)


def mean_of(cells, name, context):
    chosen = (cells.obs["target_gene"] == name) & (cells.obs["cell_type"] == context)
    return cells.X[chosen.to_numpy()].toarray().astype(np.float64)


def record(effects, contexts, controls, num_cells=None, noise=0.0):
    """A record of `effects` {(perturbation, context): [G]}."""
    pairs = sorted(effects)
    names = tuple(sorted({name for name, _ in pairs}))
    shape = np.asarray(controls, dtype=np.float32)
    return TrainingEffects(
        perturbations=names,
        contexts=tuple(contexts),
        perturbation_codes=np.array([names.index(name) for name, _ in pairs], dtype=np.int32),
        context_codes=np.array([contexts.index(context) for _, context in pairs], dtype=np.int32),
        num_cells=np.full(len(pairs), 100 if num_cells is None else num_cells, dtype=np.int32),
        effects=np.array([effects[pair] for pair in pairs], dtype=np.float32),
        control_means=shape,
        num_controls=np.full(len(contexts), 100, dtype=np.int32),
        cell_variance=np.full(shape.shape, noise, dtype=np.float32),
    )


def test_effects_are_measured_beside_the_controls_of_their_context():
    cells = known_cells()
    found, notes = measure_file(CellFile.wrap(cells), Columns())
    assert notes == ()
    assert found.pairs() == [("A", "X"), ("A", "Y"), ("B", "X")]
    assert found.num_cells.tolist() == [4, 4, 5]
    for row, (name, context) in enumerate(found.pairs()):
        expected = mean_of(cells, name, context).mean(axis=0) - mean_of(cells, CONTROL, context).mean(axis=0)
        np.testing.assert_allclose(found.effects[row], expected, atol=1e-6)
    groups = [mean_of(cells, CONTROL, "Y"), mean_of(cells, "A", "Y")]
    pooled = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups) / (8 + 3)
    np.testing.assert_allclose(found.cell_variance[1], pooled, atol=1e-6)
    np.testing.assert_allclose(found.noise(np.array([1]))[0], pooled * (1 / 4 + 1 / 9), atol=1e-6)


def test_a_context_without_controls_gives_no_effects_and_is_named():
    cells = known_cells()
    cells = cells[~((cells.obs["target_gene"] == CONTROL) & (cells.obs["cell_type"] == "Y"))].copy()
    found, notes = measure_file(CellFile.wrap(cells), Columns())
    assert found.contexts == ("X",)
    assert notes == ("training cells of Y have no control and give no effects",)
    with pytest.raises(DataError, match="no control cells"):
        measure_file(CellFile.wrap(cells[cells.obs["target_gene"] == "A"].copy()), Columns())


def test_cells_opened_for_training_give_the_same_record(tmp_path):
    known_cells().write_h5ad(tmp_path / "cells.h5ad")
    opened = TrainingCells.open(
        CellsSettings(files=(str(tmp_path / "cells.h5ad"),)), CellSplit(val=0.25, test=0.0, seed=1)
    )
    found, _ = measure_training(opened)
    rows = np.sort(np.concatenate([opened.part("train"), opened.controls("train")]))
    expected, _ = measure_file(CellFile.wrap(known_cells()[rows].copy()), Columns())
    assert found.pairs() == expected.pairs()
    assert found.num_cells.tolist() == expected.num_cells.tolist()
    np.testing.assert_allclose(found.effects, expected.effects, atol=1e-6)
    np.testing.assert_allclose(found.cell_variance, expected.cell_variance, atol=1e-6)


def test_a_record_survives_storage_in_half_precision_and_refuses_nonsense():
    found, _ = measure_file(CellFile.wrap(known_cells()), Columns())
    arrays, facts = found.to_arrays()
    assert arrays["effects"].dtype == np.float16
    again = TrainingEffects.from_arrays(arrays, facts)
    assert again.pairs() == found.pairs()
    np.testing.assert_allclose(again.effects, found.effects, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(again.control_means, found.control_means)
    for change, message in (
        ({"effects": arrays["effects"][:, :-1]}, "control_means has shape"),
        ({"perturbation": arrays["perturbation"] + 1}, "lie outside the 2 names"),
        ({"num_cells": arrays["num_cells"] * 0}, "must be at least 1"),
        ({"context": arrays["context"] * 0}, "twice in a context"),
        ({"effects": arrays["effects"] * np.float16("nan")}, "NaN or infinite"),
        ({"more": arrays["context"]}, "unexpected more"),
    ):
        with pytest.raises(DataError, match=message):
            TrainingEffects.from_arrays({**arrays, **change}, facts)
    with pytest.raises(DataError, match="contexts is no list of names"):
        TrainingEffects.from_arrays(arrays, {**facts, "contexts": 3})


def test_additive_is_the_mean_over_the_other_contexts_and_mean_the_mean_of_those():
    effects = {("A", "X"): [1, 2], ("A", "Y"): [3, 0], ("A", "Z"): [9, 9], ("B", "X"): [0, 4], ("B", "Y"): [2, 2]}
    found = record(effects, ("X", "Y", "Z"), np.ones((3, 2)))
    additive = Anchors(found, SIMPLE_MODELS["additive"])
    np.testing.assert_allclose(additive.effects(["A", "B"], "Z", hidden=("A",)), [[2, 1], [1, 3]])
    np.testing.assert_allclose(additive.effects(["unseen"], "Z", hidden=("A",)), [[1.5, 2]])
    np.testing.assert_allclose(Anchors(found, SIMPLE_MODELS["mean"]).effects(["B"], "Z", hidden=("A",)), [[1.5, 2]])


def test_transport_moves_by_the_ratio_of_the_controls_and_similar_contexts_count_more():
    effects = {("A", "X"): [1.0, 1.0, 0.0], ("A", "Y"): [0.0, 0.0, 3.0]}
    controls = [[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [2.0, 4.0, 0.0]]
    found = record(effects, ("X", "Y", "Z"), controls)
    moved = AnchorSettings(floor=0.5, similarity=0, shrink=0, shift=False)
    shown = 1 - np.exp(-np.array(controls)) + 0.5
    expected = (shown[2] / shown[0] * [1, 1, 0] + shown[2] / shown[1] * [0, 0, 3]) / 2
    np.testing.assert_allclose(Anchors(found, moved).effects(["A"], "Z")[0], expected, rtol=1e-5)
    alike = AnchorSettings(floor=None, similarity=50, shrink=0, shift=False)
    np.testing.assert_allclose(Anchors(found, alike).effects(["A"], "Z")[0], [1, 1, 0], atol=1e-6)
    new = Anchors(found, alike)
    np.testing.assert_allclose(new.effects(["A"], "a new one", np.array([0.0, 1.1, 2.1]))[0], [0, 0, 3], atol=1e-6)
    with pytest.raises(DataError, match="no control cells of 'a new one'"):
        new.effects(["A"], "a new one")


def test_what_is_within_the_noise_is_shrunk():
    found = record({("A", "X"): [3.0, 0.1], ("B", "X"): [0.0, 0.0]}, ("X", "Y"), np.ones((2, 2)), noise=0.5)
    settings = AnchorSettings(floor=None, similarity=0, shrink=1, shift=False)
    variance = 0.5 * (1 / 100 + 1 / 100)
    expected = [3 * 9 / (9 + variance), 0.1 * 0.01 / (0.01 + variance)]
    np.testing.assert_allclose(Anchors(found, settings).effects(["A"], "Y")[0], expected, rtol=1e-5)


def test_the_context_shift_is_what_seen_perturbations_have_in_common_there():
    names = [f"P{i}" for i in range(8)]
    generator = np.random.default_rng(0)
    own = {name: generator.normal(size=5) for name in names}
    shift = np.array([1.0, 0, 0, -2, 0])
    effects = {(name, "X"): own[name] for name in names} | {(name, "Y"): own[name] + shift for name in names[:6]}
    settings = AnchorSettings(floor=None, similarity=0, shrink=0)
    anchors = Anchors(record(effects, ("X", "Y"), np.ones((2, 5))), settings)
    np.testing.assert_allclose(anchors.effects(["P7"], "Y")[0], own["P7"] + shift, atol=1e-5)
    np.testing.assert_allclose(anchors.left_out(names[:2], "Y"), [own[n] + shift for n in names[:2]], atol=1e-5)
    for row, (name, context) in enumerate(anchors.record.pairs()):
        if context == "Y":
            np.testing.assert_allclose(anchors.training()[row], own[name] + shift, atol=1e-5)


def test_an_anchor_of_a_training_pair_never_sees_the_pair():
    generator = np.random.default_rng(1)
    contexts = ("X", "Y", "Z")
    effects = {(f"P{i}", c): generator.normal(size=7) for i in range(6) for c in contexts}
    effects[("only Z", "Z")] = generator.normal(size=7)
    found = record(effects, contexts, generator.random((3, 7)) + 0.5, noise=0.3)
    before = Anchors(found, AnchorSettings()).training()
    for row in range(found.num_pairs):
        changed = found.effects.copy()
        changed[row] += 100.0
        other = TrainingEffects(**{**vars(found), "effects": changed})
        np.testing.assert_allclose(Anchors(other, AnchorSettings()).training()[row], before[row], atol=2e-4)


def test_a_measured_pair_is_drawn_towards_its_measurement_by_its_noise():
    generator = np.random.default_rng(2)
    effects = {(f"P{i}", c): generator.normal(size=50) for i in range(10) for c in ("X", "Y")}
    precise, noisy = (record(effects, ("X", "Y"), np.ones((2, 50)), noise=noise) for noise in (1e-4, 500.0))
    settings = AnchorSettings(shift=False)
    told = Anchors(precise, settings).effects(["P3"], "Y")[0]
    np.testing.assert_allclose(told, effects[("P3", "Y")], atol=0.05)
    hidden = Anchors(noisy, settings).effects(["P3"], "Y", hidden=("P3",))
    np.testing.assert_allclose(Anchors(noisy, settings).effects(["P3"], "Y"), hidden, atol=0.1)


def test_data_without_cell_types_has_one_context_under_any_name():
    effects = {(name, "all cells"): [1.0, 2.0] for name in ("A", "B", "C")}
    anchors = Anchors(record(effects, ("all cells",), [[1.0, 1.0]]), AnchorSettings())
    np.testing.assert_allclose(anchors.effects(["A", "new"], "K562"), [[1, 2], [1, 2]], atol=1e-5)


def test_unseen_effects_come_from_features_where_they_say_something():
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(3, 30))
    features = {f"P{i}": generator.normal(size=3) for i in range(60)}
    for vector in features.values():
        vector /= np.linalg.norm(vector)
    effects = {name: vector @ weights for name, vector in list(features.items())[:50]}
    model = fit_features(effects, features)
    assert model is not None
    assert model.explained > 0.95
    np.testing.assert_allclose(model.predict("P55"), features["P55"] @ weights, atol=0.15)
    assert model.predict("no features") is None
    noise = {name: generator.normal(size=30) for name in effects}
    random = fit_features(noise, {name: generator.normal(size=3) for name in effects})
    assert random is None or random.explained < 0.05
    found = record({(name, "X"): effect for name, effect in effects.items()}, ("X", "Y"), np.ones((2, 30)))
    told = Anchors(found, SIMPLE_MODELS["additive"], features).effects(["P55", "no features"], "Y")
    np.testing.assert_allclose(told[0], features["P55"] @ weights, atol=0.15)
    np.testing.assert_allclose(told[1], np.mean(list(effects.values()), axis=0), atol=1e-5)
