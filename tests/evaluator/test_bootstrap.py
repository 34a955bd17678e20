"""Bootstrap over perturbations: intervals with known width, coverage and pairing."""

import numpy as np
import polars as pl
import pytest

from steval.evaluator.reference.bootstrap import draw_weights, resampled_means, score_intervals


def frame(**columns):
    num = len(next(iter(columns.values())))
    return pl.DataFrame({"perturbation": [f"P{i}" for i in range(num)], **columns})


def bounds(intervals, quantity, metric):
    row = intervals.filter((pl.col("quantity") == quantity) & (pl.col("metric") == metric)).row(0, named=True)
    return row["low"], row["high"]


def test_interval_of_a_mean_matches_the_standard_error():
    values = np.random.default_rng(0).normal(0.5, 0.1, 200)
    intervals = score_intervals(frame(mae=values), None, ["mae"], ["low"], 4000, 0)
    low, high = bounds(intervals, "value", "mae")
    half = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_prediction_and_baseline_are_resampled_together():
    base = np.linspace(0.1, 1.0, 30)
    intervals = score_intervals(frame(mae=base * 0.8), frame(mae=base), ["mae"], ["low"], 500, 0)
    assert bounds(intervals, "unclipped", "mae") == pytest.approx((0.2, 0.2))
    assert bounds(intervals, "normalised", "overall") == pytest.approx((0.2, 0.2))


def test_global_metrics_and_nan_means_have_no_interval():
    results = frame(
        pearson_edistance=[0.4] * 6, pr_auc=[0.1, np.nan, 0.2, 0.3, 0.4, 0.5], overlap_at_N=np.linspace(0, 1, 6)
    )
    metrics = ["pearson_edistance", "pr_auc", "overlap_at_N"]
    intervals = score_intervals(results, results, metrics, ["high"] * 3, 300, 0)
    assert bounds(intervals, "value", "pearson_edistance") == (None, None)
    assert bounds(intervals, "value", "pr_auc") == (None, None)
    low, high = bounds(intervals, "value", "overlap_at_N")
    assert low < 0.5 < high


def test_missing_values_are_left_out():
    weights = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    means = resampled_means(np.array([[1.0], [np.nan], [5.0]]), weights)
    np.testing.assert_array_equal(means, [[1.0], [5.0]])


def test_same_seed_same_draws_and_two_perturbations_give_no_interval():
    np.testing.assert_array_equal(draw_weights(5, 10, 3), draw_weights(5, 10, 3))
    assert (draw_weights(5, 10, 3).sum(axis=1) == 5).all()
    assert score_intervals(frame(mae=[0.1, 0.2]), None, ["mae"], ["low"], 100, 0).is_empty()
