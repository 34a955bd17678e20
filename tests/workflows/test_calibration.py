"""Calibration chooses what was planted, and nothing where there is nothing to choose by."""

import numpy as np
import pytest

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.measure import measure_file
from steval.data.synthetic import generate
from steval.evaluator.reference.training import read_training
from steval.workflows.checkpoints.calibrate import mean_profile, pairs_of
from steval.workflows.checkpoints.calibration import FEW_UNITS, choose_anchor, choose_weight

START = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())


@pytest.fixture(scope="module")
def screen():
    """Three cell types whose effects correlate; the last has held-out perturbations."""
    cells = generate(
        num_genes=150, num_perturbations=16, cells_per_perturbation=40, num_controls=120, cell_types=("X", "Y", "Z"),
        shared_effect=0.9, counts_per_cell=3000.0, seed=2,
    ).cells  # fmt: skip
    cells.X = lognorm(cells.X, 10_000.0)
    cells.uns.clear()
    names = sorted(set(cells.obs["target_gene"].astype(str)) - {"non-targeting"})
    held = (cells.obs["cell_type"] == "Z") & cells.obs["target_gene"].isin(names[:12])
    control = (cells.obs["target_gene"] == "non-targeting") & (cells.obs["cell_type"] == "Z")
    record, _ = measure_file(CellFile.wrap(cells[~held].copy()), Columns())
    held_out = CellFile.wrap(cells[held | control].copy())
    pairs = list(pairs_of(held_out, Columns(), 10_000.0, mean_profile(record), np.random.default_rng(0)))
    return record, pairs, cells


def real_effects(cells, pairs):
    labels, types = cells.obs["target_gene"].astype(str), cells.obs["cell_type"].astype(str)

    def mean(name):
        return np.asarray(cells.X[((labels == name) & (types == pairs.context)).to_numpy()].mean(axis=0)).ravel()

    return np.stack([mean(name) - mean("non-targeting") for name in pairs.names])


def test_the_networks_share_is_what_helps(screen):
    _, pairs, cells = screen
    truth = {id(one): real_effects(cells, one) for one in pairs}
    generator = np.random.default_rng(0)
    noise = {key: generator.normal(0, 0.3, effects.shape) for key, effects in truth.items()}
    nothing = {key: np.zeros_like(effects) for key, effects in truth.items()}
    knowing = choose_weight(pairs, START, lambda one: nothing[id(one)], lambda one: truth[id(one)])
    assert knowing.decoding.network_weight >= 0.75
    assert [trial.chosen for trial in knowing.trials].count(True) == 1
    assert max(knowing.trials, key=lambda trial: trial.score).chosen
    noisy = choose_weight(pairs, START, lambda one: truth[id(one)], lambda one: noise[id(one)])
    assert noisy.decoding.network_weight == 0
    assert not any(trial.chosen for trial in noisy.trials)
    assert all(trial.difference < 0 for trial in noisy.trials)


def test_a_bad_setting_is_left_for_a_good_one_and_a_tie_is_kept(screen):
    record, pairs, _ = screen
    silent = START.model_copy(update={"anchor": AnchorSettings(similarity=0, scale=0.0, shift=False)})
    found = choose_anchor(record, None, pairs, silent)
    assert found.num_pairs == 12 >= FEW_UNITS
    assert found.decoding.anchor is not None
    assert found.decoding.anchor.scale == 1.25
    chosen = [trial for trial in found.trials if trial.chosen]
    assert all(trial.difference > trial.standard_error for trial in chosen)
    again = choose_anchor(record, None, pairs, silent)
    assert again == found


def test_few_pairs_choose_two_settings_at_most_and_none_keeps_the_default(screen):
    record, pairs, _ = screen
    few = [one for one in pairs if len(one.names) < FEW_UNITS][:1]
    found = choose_anchor(record, None, few, START)
    assert {name for trial in found.trials for name in trial.change} == {"similarity", "floor"}
    assert choose_anchor(record, None, [], START).decoding == START
    assert choose_anchor(record, None, [], START).trials == ()


def test_the_mean_baseline_of_a_record_is_that_of_the_cells(screen):
    _, _, cells = screen
    everything = measure_file(CellFile.wrap(cells), Columns())[0]
    training = read_training(cells, list(cells.var_names), Columns(), [])
    np.testing.assert_allclose(mean_profile(everything), training.mean_profile, atol=1e-5)
