"""Scores of held-out pairs in memory are those of `evaluate`, perturbation by perturbation."""

import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.heldout import MEMBERS, HeldOut, leaderboard_parts
from steval.evaluator.reference.baselines import baseline_pair
from steval.evaluator.reference.training import read_training
from steval.evaluator.scoring import score
from steval.evaluator.stages import evaluate
from support.score_screens import CONTROL, synthetic_screen

SCREEN = synthetic_screen()


def by_name(cells):
    labels = cells.obs["target_gene"].astype(str).to_numpy()
    matrix = sp.csr_matrix(cells.X)
    return {name: matrix[labels == name] for name in sorted(set(labels))}


def held_out():
    real = by_name(SCREEN.real)
    return HeldOut(real.pop(CONTROL), real, list(SCREEN.real.var_names))


def test_members_are_those_of_the_evaluation():
    prediction = SCREEN.prediction(lambda cells, name, generator: cells * 0.9)
    scores = held_out().scores(by_name(prediction))
    expected = evaluate(Pair.build(prediction, SCREEN.real, Columns()), [*MEMBERS, "pearson_delta", "de_nsig_counts"])
    for column, name in enumerate(MEMBERS):
        np.testing.assert_allclose(scores.members[:, column], expected.results[name].to_numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scores.pearson_delta, expected.results["pearson_delta"].to_numpy(), rtol=1e-4)
    np.testing.assert_array_equal(scores.num_significant, expected.results["de_nsig_counts_pred"].to_numpy())


def test_parts_add_up_to_the_leaderboard_score():
    prediction = SCREEN.prediction()
    report = score(prediction, SCREEN.real, train=SCREEN.train, integrity="none", bootstrap=0)
    pair = Pair.build(prediction, SCREEN.real, Columns())
    training = read_training(SCREEN.train, pair.genes, pair.columns, pair.perturbations)
    held = held_out()
    baseline = held.mean_baseline(training.mean_profile)
    expected = evaluate(baseline_pair(pair, training, "mean"), list(MEMBERS)).results
    # cell-eval's mean baseline has training controls beside it, which only moves what is told from the control
    assert baseline[0] == pytest.approx(expected["mae"].mean(), rel=1e-5)
    parts = leaderboard_parts(held.scores(by_name(prediction)).members, baseline)
    assert parts.mean() == pytest.approx(100 * report.score, abs=1.5)
    assert parts.shape == (len(held.names),)


def test_a_member_that_cannot_improve_counts_nothing():
    parts = leaderboard_parts(np.array([[0.1, 1.0, 0.5]]), np.array([0.2, 1.0, 0.0]))
    np.testing.assert_allclose(parts, [100 * (0.5 + 0 + 0.5) / 3])
