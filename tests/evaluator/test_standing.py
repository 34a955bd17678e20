"""The verdict beside the best simple model: its sentence, its interval, what it says where there is nothing to say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steval.evaluator.comparison import compare_scores
from steval.evaluator.report.html import render_report
from steval.evaluator.report.report import PREDICTION
from steval.evaluator.report.standing import ADVICE, ADVICE_PAGE, standing
from steval.evaluator.scoring import score
from steval.evaluator.tables import write_score_dir
from support.score_screens import real_screen, synthetic_screen


@pytest.fixture(scope="module")
def report():
    screen = real_screen()
    return score(screen.prediction(), screen.real, columns=screen.columns, train=screen.train, bootstrap=200)


def as_predictor(report, kind):
    """The report as it were had the simple model `kind` been what was scored."""
    results = report.baseline_results.filter(pl.col("baseline") == kind).drop("baseline").select(report.results.columns)
    overall = report.overall.filter(pl.col("predictor") == kind).with_columns(predictor=pl.lit(PREDICTION))
    others = report.overall.filter(pl.col("predictor") != PREDICTION)
    return dataclasses.replace(report, results=results, overall=pl.concat([overall, others]))


def test_a_simple_model_stands_exactly_where_it_is(report):
    """Paired: against itself every resample differs by nothing, however wide the interval of either score."""
    found = standing(report)
    itself = standing(as_predictor(report, found.simple_model))
    assert (itself.difference, itself.low, itself.high) == (0.0, 0.0, 0.0)
    assert itself.outcome == "undecided"
    assert "neither is shown to be better" in itself.sentence
    assert itself.advice.endswith(f"{ADVICE_PAGE}.")


def test_the_interval_is_that_of_a_comparison_of_two_scores(report):
    """`compare_scores` resamples in the same way; same seed, same draws."""
    found = standing(report)
    simple = as_predictor(report, found.simple_model)
    rows = compare_scores(simple, report, draws=200, seed=report.record["seed"])
    row = rows.filter((pl.col("metric") == "overall") & (pl.col("quantity") == "normalised")).row(0, named=True)
    assert found.difference == pytest.approx(100 * row["difference"])
    assert (found.low, found.high) == pytest.approx((100 * row["low"], 100 * row["high"]))


def test_worse_and_better_are_said_beyond_chance_alone(report):
    found = standing(report)
    for number, outcome, word in ((-0.5, "worse", "below"), (0.5, "better", "above")):
        columns = [pl.col("discrimination_score_l1") + number]
        moved = dataclasses.replace(
            report,
            results=report.results.with_columns(columns),
            overall=report.overall.with_columns(
                leaderboard=pl.when(pl.col("predictor") == PREDICTION)
                .then(found.simple_score + 60 * number)
                .otherwise(pl.col("leaderboard"))
            ),
        )
        stands = standing(moved)
        if number < 0:  # the clipped member ends at 0; the simple model's is above it on most draws
            assert stands.high <= 0
        else:
            assert stands.outcome == outcome
            assert stands.advice is None
        assert f" {word} the best simple model, {found.simple_model}" in stands.sentence


def test_without_simple_models_or_intervals_it_says_so(report):
    screen = real_screen()
    raw = score(screen.prediction(), screen.real, columns=screen.columns, integrity="none")
    assert standing(raw).outcome == "unknown"
    assert "no simple model" in standing(raw).sentence
    assert "--train" in standing(raw).advice
    record = report.record | {"options": report.record["options"] | {"bootstrap": 0}}
    bare = standing(dataclasses.replace(report, record=record))
    assert (bare.outcome, bare.low, bare.advice) == ("unknown", None, None)
    assert "more than chance" in bare.sentence


def test_by_cell_type_the_means_over_types_are_compared():
    screen = synthetic_screen(cell_types=("K562", "H1"), cells_per_perturbation=30, num_controls=60)
    each = score(
        screen.prediction(), screen.real, columns=screen.columns, train=screen.train, by="cell_type", bootstrap=100
    )
    found = standing(each)
    overall = each.overall.filter(pl.col("cell_type").is_null())
    simple = overall.filter(pl.col("predictor") != PREDICTION)["leaderboard"].max()
    assert found.simple_score == simple
    assert found.score == each.leaderboard
    assert found.low <= found.difference <= found.high or np.isclose(found.low, found.high)


def test_it_comes_first_on_the_page_and_stands_in_score_json(report, tmp_path):
    page = render_report(report)
    sentence = standing(report).sentence
    assert page.index(sentence) < page.index("Overall score</span>")
    assert all(line.split(":")[0] in page for line in ADVICE)
    written = json.loads((write_score_dir(report, tmp_path / "s") / "score.json").read_text())["standing"]
    assert written["sentence"] == sentence
    assert written["interval"] == [standing(report).low, standing(report).high]


def test_failed_checks_are_part_of_the_verdict(report):
    rows = report.integrity.with_columns(status=pl.lit("ok"))
    clean = dataclasses.replace(report, integrity=rows)
    assert "integrity" not in standing(clean).sentence
    one = rows.with_row_index().with_columns(
        status=pl.when(pl.col("index") == 0).then(pl.lit("fail")).otherwise(pl.col("status"))
    )
    assert "1 integrity check failed" in standing(dataclasses.replace(report, integrity=one.drop("index"))).sentence


def test_the_page_that_the_advice_names_is_there():
    name, heading = ADVICE_PAGE.split(", ")
    page = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    assert f"## {heading.strip('“”')}" in page
