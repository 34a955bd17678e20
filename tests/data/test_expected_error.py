"""Expected errors: found where sizes or cells tell them, the same for all where nothing does; intervals that cover."""

import numpy as np
import pytest

from steval.data.effects.expected import (
    FEWEST_PAIRS,
    effect_sizes,
    fit_expected_error,
    rank_correlation,
    training_cells,
)
from steval.data.effects.record import TrainingEffects


def pairs(generator, number, slope=0.5, noise=0.1):
    """Errors that grow with the size of effects and fall with the cells seen."""
    sizes, cells = generator.lognormal(-3, 0.8, number), generator.integers(20, 400, number)
    errors = np.exp(-3 + slope * np.log(sizes) - slope * np.log1p(cells) + generator.normal(0, noise, number))
    return sizes, cells, errors


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_errors_are_ranked_and_their_intervals_cover(noise):
    generator = np.random.default_rng(0)
    model = fit_expected_error(*pairs(generator, 80, noise=noise), measured_cells=40)
    sizes, cells, errors = pairs(generator, 2000, noise=noise)
    told = model.told(sizes, cells)
    assert 0.85 < ((errors >= told[:, 1]) & (errors <= told[:, 2])).mean() < 0.96
    assert rank_correlation(told[:, 0], errors) > 0.8
    assert model.rank_correlation == pytest.approx(rank_correlation(told[:, 0], errors), abs=0.1)
    assert (model.pairs, model.measured_cells) == (80, 40)


def test_where_nothing_tells_the_error_all_are_expected_the_same():
    generator = np.random.default_rng(1)
    sizes, cells, _ = pairs(generator, 60)
    errors = np.exp(generator.normal(-3, 0.2, 60))
    model = fit_expected_error(sizes, cells, errors, measured_cells=40)
    told = model.told(np.array([1e-4, 1e2]), np.array([0, 10_000]))
    np.testing.assert_array_equal(told[0], told[1])
    assert model.rank_correlation == 0
    assert told[0, 1] < np.median(errors) < told[0, 2]


def test_too_few_pairs_tell_nothing():
    values = pairs(np.random.default_rng(2), FEWEST_PAIRS - 1)
    assert fit_expected_error(*values, measured_cells=40) is None


def test_effects_far_outside_what_was_seen_are_not_extrapolated_without_end():
    model = fit_expected_error(*pairs(np.random.default_rng(3), 50), measured_cells=40)
    told = model.told(np.array([0.0, 1e6]), np.array([100, 100]))
    assert np.isfinite(told).all()
    assert told[1, 0] < 20 * told[0, 0]


def test_cells_of_a_perturbation_are_counted_without_hidden_pairs():
    record = TrainingEffects(
        perturbations=("a", "b"), contexts=("X", "Y"), perturbation_codes=np.array([0, 0, 1], dtype=np.int32),
        context_codes=np.array([0, 1, 0], dtype=np.int32), num_cells=np.array([10, 5, 7], dtype=np.int32),
        effects=np.array([[1.0, -3.0], [0.0, 0.0], [0.5, 0.5]], dtype=np.float32),
        control_means=np.ones((2, 2), np.float32), num_controls=np.array([9, 9], dtype=np.int32),
        cell_variance=np.ones((2, 2), np.float32),
    )  # fmt: skip
    np.testing.assert_array_equal(training_cells(record, ["b", "a", "new"]), [7, 15, 0])
    np.testing.assert_array_equal(training_cells(record, ["a"], [("a", "Y"), ("b", "X")]), [10])
    np.testing.assert_allclose(effect_sizes(record.effects), [2.0, 0.0, 0.5])
