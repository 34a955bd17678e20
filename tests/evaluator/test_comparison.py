"""Comparison of two scores: what is better is found, what is noise is called noise."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from steval.errors import EvaluationError
from steval.evaluator.comparison import compare_scores
from steval.evaluator.scoring import score
from steval.evaluator.tables import write_score_dir
from support.score_screens import CONTROL, real_screen, synthetic_screen

SCREEN = synthetic_screen()


def scored(change=None, **options):
    settings = {"columns": SCREEN.columns, "train": SCREEN.train, "integrity": "none"} | options
    return score(SCREEN.prediction(change), SCREEN.real, **settings)


@pytest.fixture(scope="module")
def good():
    return scored()


@pytest.fixture(scope="module")
def worse():
    labels = SCREEN.real.obs["target_gene"].astype(str).to_numpy()
    base = SCREEN.real.X.toarray()[labels == CONTROL].mean(axis=0)
    return scored(lambda m, *_: m - 0.5 * (m.mean(0) - base))


def rows(frame):
    return {(row["quantity"], row["metric"]): row for row in frame.iter_rows(named=True)}


def test_the_better_of_two_is_named(good, worse, tmp_path):
    compared = rows(compare_scores(good, worse))
    overall = compared["normalised", "overall"]
    assert overall["better"] == "a"
    assert overall["exceeds_noise"]
    assert overall["difference"] == pytest.approx(worse.score - good.score)
    assert overall["low"] < overall["difference"] < overall["high"] < 0
    assert overall["p_value"] < 0.01
    assert compared["value", "mae"]["better"] == "a"
    turned = rows(compare_scores(write_score_dir(worse, tmp_path / "w"), write_score_dir(good, tmp_path / "g")))
    assert turned["normalised", "overall"]["better"] == "b"


def test_equal_scores_do_not_differ(good):
    for row in compare_scores(good, good).iter_rows(named=True):
        assert row["difference"] == 0
        assert row["exceeds_noise"] is False
        assert row["p_value"] == 1


def test_false_alarms_are_about_as_rare_as_they_should_be(good):
    """Differences drawn around 0: about 5 % of the intervals exclude it (more on 30 perturbations than on many)."""
    generator = np.random.default_rng(0)
    names = [f"P{i}" for i in range(30)]
    alarms = 0
    for trial in range(200):
        values = generator.normal(0.5, 0.1, (2, 30))
        reports = [
            dataclasses.replace(
                good,
                results=pl.DataFrame({"cell_type": [None] * 30, "perturbation": names, "mae": row}),
                breakdown=good.breakdown.filter(pl.col("metric") == "mae"),
                baseline_results=good.baseline_results.clear(),
            )
            for row in values
        ]
        reports = [dataclasses.replace(r, results=r.results.cast({"cell_type": pl.String})) for r in reports]
        alarms += compare_scores(*reports, draws=400, seed=trial)["exceeds_noise"][0]
    assert 2 <= alarms <= 24


def test_other_real_data_cannot_be_compared(good):
    screen = real_screen()
    other = score(screen.prediction(), screen.real, columns=screen.columns, metrics_only=True)
    with pytest.raises(EvaluationError, match="different real cells"):
        compare_scores(good, other)


def test_without_baselines_values_alone_are_compared(good):
    raw = scored(metrics_only=True)
    assert set(compare_scores(good, raw)["quantity"]) == {"value"}


def test_global_metrics_are_not_tested():
    both = scored(metrics=["pearson_edistance", "mae"])
    compared = rows(compare_scores(both, both))
    assert compared["value", "pearson_edistance"]["exceeds_noise"] is None
    assert "cannot be tested" in compared["value", "pearson_edistance"]["sentence"]
