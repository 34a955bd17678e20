"""Normalised members and overall score: cell-eval's own function is the right answer."""

import cell_eval
import numpy as np
import polars as pl
import pytest

from steval.evaluator.reference.members import member_table, metric_means, unclipped_members

METRICS = ("mae", "discrimination_score_l1", "overlap_at_N", "pearson_delta", "de_nsig_counts_real")
BEST = {
    "mae": "low",
    "discrimination_score_l1": "high",
    "overlap_at_N": "high",
    "pearson_delta": "high",
    "de_nsig_counts_real": "none",
}


def results(seed, nan_at=None, scale=1.0):
    generator = np.random.default_rng(seed)
    frame = pl.DataFrame({metric: generator.uniform(0.1, 0.9, 7) * scale for metric in METRICS})
    if nan_at:
        values = frame[nan_at].to_numpy().copy()
        values[2] = np.nan
        frame = frame.with_columns(pl.Series(nan_at, values))
    return frame


def upstream(user, base):
    scored = cell_eval.score_agg_metrics(user.describe(), base.describe())
    return dict(scored.iter_rows())


@pytest.mark.parametrize(
    ("user", "base"),
    [
        pytest.param(results(1), results(2), id="plain"),
        pytest.param(results(1, scale=3.0), results(2), id="worse-than-baseline"),
        pytest.param(results(1, nan_at="overlap_at_N"), results(2), id="nan-counts-as-zero"),
        pytest.param(results(1), results(2, nan_at="mae"), id="nan-in-baseline"),
        pytest.param(
            results(1).with_columns(pl.when(pl.int_range(7) > 3).then(pl.col("mae")).alias("mae")),
            results(2),
            id="nulls",
        ),
    ],
)
def test_members_and_overall_equal_cell_evals(user, base):
    expected = upstream(user, base)
    table, overall = member_table(metric_means(user, METRICS), metric_means(base, METRICS), BEST)
    members = {row["metric"]: row["normalised"] for row in table.iter_rows(named=True)}
    assert members.pop("de_nsig_counts_real") is None
    assert overall.clipped == pytest.approx(expected.pop("avg_score"), abs=1e-12)
    assert members == pytest.approx(expected, abs=1e-12)
    assert overall.leaderboard == overall.clipped * 100


def test_what_clipping_hides_is_in_the_unclipped_member():
    table, overall = member_table({"mae": 0.06, "overlap_at_N": 0.5}, {"mae": 0.03, "overlap_at_N": 0.0}, BEST)
    assert table["normalised"].to_list() == [0.0, 0.5]
    assert table["unclipped"].to_list() == [-1.0, 0.5]
    assert (overall.clipped, overall.unclipped) == (0.25, -0.25)


def test_without_baseline_the_normalised_columns_are_empty():
    table, overall = member_table({"mae": 0.06}, None, BEST)
    assert table.row(0) == ("mae", 0.06, None, None, None)
    assert np.isnan(overall.clipped)
    assert np.isnan(overall.unclipped)


def test_a_perfect_prediction_scores_one_and_the_baseline_zero():
    best = ["low", "high"]
    np.testing.assert_array_equal(unclipped_members(np.array([0.0, 1.0]), np.array([0.3, 0.2]), best), [1.0, 1.0])
    np.testing.assert_array_equal(unclipped_members(np.array([0.3, 0.2]), np.array([0.3, 0.2]), best), [0.0, 0.0])
