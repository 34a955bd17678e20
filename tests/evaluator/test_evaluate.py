"""Evaluations: pure metrics, explicit failures, tables from elsewhere."""

import math

import numpy as np
import polars as pl
import pytest

from steval.data.columns import Columns
from steval.errors import ConfigError, EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import evaluate
from steval.evaluator.metrics.profiles import profile_metrics
from support.engine_screens import assert_same_metrics, cell_eval_results, screen


@pytest.fixture(scope="module")
def pair():
    real, pred = screen(num_perturbations=6, num_genes=150)
    with Pair.build(pred, real, Columns()) as pair:
        yield pair


@pytest.fixture(scope="module")
def everything(pair):
    return evaluate(pair, "full")


@pytest.mark.parametrize("metric", [name for name in profile_metrics("full") if name != "clustering_agreement"])
def test_a_metric_alone_is_the_metric_among_all(pair, everything, metric):
    alone = evaluate(pair, [metric]).results
    assert alone.equals(everything.results.select(alone.columns), null_equal=True)


def test_a_failed_metric_is_nan_with_its_reason():
    real, pred = screen(num_perturbations=2, num_genes=100)
    with Pair.build(pred, real, Columns()) as pair:
        evaluation = evaluate(pair, ["clustering_agreement", "mae"])
    assert evaluation.results["clustering_agreement"].is_nan().all()
    assert evaluation.results["mae"].is_finite().all()
    (failure,) = evaluation.failures.to_dicts()
    assert failure["perturbation"] is None
    assert failure["metric"] == "clustering_agreement"
    assert "at least three perturbations" in failure["reason"]


def test_every_empty_value_has_a_reason(everything):
    for column in everything.results.columns[1:]:
        absent = everything.results.filter(pl.col(column).is_null() | pl.col(column).is_nan())["perturbation"].to_list()
        reasons = everything.failures.filter(pl.col("metric") == column)
        assert reasons["perturbation"].to_list() in (absent, [None])
        assert (reasons["reason"].str.len_chars() > 10).all()
    assert everything.failures.height == 5


def test_tables_from_elsewhere_give_the_same_values(pair, everything):
    shuffled = everything.de_real.sample(fraction=1.0, shuffle=True, seed=1).drop("statistic", "ref_mean")
    evaluation = evaluate(pair, "de", de_real=shuffled, de_pred=everything.de_pred)
    ours, whole = evaluation.results, everything.results
    for column in ours.columns:
        if "overlap" in column or "precision" in column:
            continue
        assert ours[column].equals(whole[column], null_equal=True), column
    assert evaluation.de_real is shuffled


def test_incomplete_tables_are_treated_as_in_cell_eval(tmp_path):
    real, pred = screen(num_perturbations=6, num_genes=150)
    cell_eval_results(real, pred, "pds", tmp_path=tmp_path)
    outdir = tmp_path / "cell-eval"
    tables = {name: pl.read_csv(outdir / f"{name}_de.csv") for name in ("real", "pred")}
    tables["pred"] = tables["pred"].filter(pl.col("target_mean") > 0.5)
    tables["real"] = tables["real"].sort("p_value")
    theirs, _ = cell_eval_results(
        real, pred, "de", tmp_path=tmp_path, de_real=tables["real"].clone(), de_pred=tables["pred"].clone()
    )
    with Pair.build(pred, real, Columns()) as pair:
        ours = evaluate(pair, "de", de_real=tables["real"], de_pred=tables["pred"]).results
    assert_same_metrics(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop("fdr"), "lacks the columns fdr"),
        (lambda table: pl.concat([table, table.head(1)]), "more than once"),
        (lambda table: table.filter(pl.col("target") != "drug0"), "different perturbations: drug0"),
    ],
)
def test_bad_tables_are_errors(pair, everything, change, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(pair, ["pr_auc"], de_real=change(everything.de_real))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": "vvc"}, "no profile 'vvc'.*nearest: vcc"),
        ({"metrics": ["maee"]}, "no metric 'maee'; nearest: mae"),
        ({"metrics": []}, "no metric was asked for"),
        ({"metrics": ["mae"], "options": {"mae": {"embed": "x"}}}, "metric mae has no option embed.*embed_key"),
        ({"metrics": ["mae"], "options": {"mea": {}}}, "no metric 'mea'"),
    ],
)
def test_unknown_names_are_configuration_errors(pair, arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(pair, **arguments)


def test_an_embedding_that_is_not_there_fails_that_metric_alone(pair):
    evaluation = evaluate(pair, ["mse", "mae"], options={"mse": {"embed_key": "X_none"}})
    assert evaluation.results["mse"].is_nan().all()
    assert "no obsm matrix 'X_none'; it has: X_low" in evaluation.failures["reason"][0]
    assert evaluation.results["mae"].is_finite().all()


def test_mean_profiles_come_with_names(pair, everything):
    bulk = everything.pseudobulk_real
    assert bulk.names == tuple(sorted([*pair.perturbations, "non-targeting"]))
    assert bulk.values.shape == (7, 150)
    assert "reading real" in everything.timings


def test_the_perfect_prediction_has_perfect_values():
    real, _ = screen(num_perturbations=6, num_genes=150)
    with Pair.build(real.copy(), real, Columns()) as pair:
        results = evaluate(pair, "full").results
    last = results.filter(pl.col("perturbation") == "drug2")
    others = results.filter(pl.col("perturbation") != "drug2")
    assert (results["mae"] == 0).all()
    assert (others["overlap_at_N"] == 1).all()
    assert (others["roc_auc"] == 1).all()
    assert (results["discrimination_score_l2"] == 1).all()
    assert results["pearson_edistance"][0] == pytest.approx(1.0)
    assert last["de_nsig_counts_real"].item() == 0
    assert last["overlap_at_N"].item() == 0
    assert last["de_direction_match"].item() is None
    assert math.isnan(last["pr_auc"].item())


def test_every_value_that_is_no_number_has_its_reason():
    real, pred = screen(num_perturbations=5, num_genes=60, cells=6, controls=20)
    for side in (real, pred):
        side.obsm["X_bad"] = np.where(np.arange(side.n_obs)[:, None] == 3, np.inf, side.obsm["X_low"]).astype(
            np.float32
        )
    chosen = [name for name in profile_metrics("full") if name != "clustering_agreement"]
    bad = {name: {"embed_key": "X_bad"} for name in ("mae", "discrimination_score_l2", "pearson_edistance")}
    for options in ({}, bad):
        with Pair.build(pred, real, Columns()) as pair:
            found = evaluate(pair, chosen, options=options)
        explained = {(row["perturbation"], row["metric"]) for row in found.failures.iter_rows(named=True)}
        for metric in found.results.columns[1:]:
            numbers = found.results.filter(~pl.col(metric).is_finite().fill_null(False))["perturbation"]
            assert all({(name, metric), (None, metric)} & explained for name in numbers), metric
        for metric in options:
            (reason,) = found.failures.filter(pl.col("metric") == metric)["reason"]
            assert "obsm 'X_bad' of the" in reason
            assert "holds NaN or infinite values" in reason
