"""Scoring on counts: what is measured of cells and their halves, the scale, what is refused, the cache."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.errors import ConfigError, DataError, EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.comparison import compare_scores
from steval.evaluator.measure.count_scan import rank_controls, scan_counts, scan_halves
from steval.evaluator.measure.jackknife import Correction, log1p_small
from steval.evaluator.metrics.evaluation import evaluate
from steval.evaluator.metrics.profiles import PROFILES, resolve
from steval.evaluator.reference.baselines import multiplied
from steval.evaluator.reference.members import limited_members, replicate_members, replicate_overall
from steval.evaluator.reference.replicates import ReplicateScale, replicate_scale, split_cells, split_seeds
from steval.evaluator.report.html import render_report
from steval.evaluator.report.report import of_type
from steval.evaluator.report.standing import standing
from steval.evaluator.scoring import score
from support.count_screens import CONTROL, CountScreen, pairs, without_controls

LAW = CountScreen(num_perturbations=4, num_genes=60, affected=25)
REAL, PRED = LAW.cells(0, each=20, controls=45), LAW.cells(1, factor=0.7, each=20, controls=45)


def on_counts(pred, real, **options):
    return score(pred, real, profile="vcc2026", threads=1, bootstrap=0, **{"integrity": "none", **options})


def opened(pred=PRED, real=REAL):
    return Pair.build(pred, real, Columns(), takes="counts")


@pytest.mark.parametrize(
    ("cells", "genes", "depth"), [(40, 30, 2000), (6, 20, 300), (3, 10, 15), (2, 8, 5), (1, 5, 20)]
)
def test_the_sampling_correction_is_the_jackknife(cells, genes, depth):
    """Against leaving out each cell in turn."""
    generator = np.random.default_rng(cells)
    counts = generator.poisson(depth * generator.dirichlet(np.full(genes, 0.3)) * generator.gamma(2, 0.5, (cells, 1)))
    counts[:, 0] += 1
    total = counts.sum(axis=0)

    def profile(sums):
        return np.log1p(50_000 * sums / sums.sum()) if sums.sum() else np.zeros(genes)

    left_out = np.array([profile(total - row) for row in counts])
    expected = (cells - 1) / cells * ((left_out - left_out.mean(axis=0)) ** 2).sum()
    correction = Correction(total, counts.sum(axis=1).astype(float), 50_000.0)
    for rows in np.array_split(np.arange(cells), 2):  # in two pieces
        correction.add(sp.csr_matrix(counts.astype(np.float32)), rows, rows)
    assert correction.value() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_short_logarithm_is_exact():
    values = np.concatenate([np.linspace(-0.9, 2, 3001), np.geomspace(1e-18, 0.031, 200)])
    np.testing.assert_allclose([log1p_small(value) for value in values], np.log1p(values), rtol=4e-16, atol=0)


def test_halves_are_measured_as_if_they_were_read_alone():
    """Every half of every split, from the one reading of all cells, equals a scan of its cells against its controls."""
    with opened() as pair:
        splits = split_cells(pair)
        full, halves = scan_halves(pair.real, pair.perturbations, rank_controls(pair.real, CONTROL, 1, splits), 2)
        alone = scan_counts(pair.real, pair.perturbations, rank_controls(pair.real, CONTROL, 1), 1)
        tables = {-1: (full, alone)}
        for half in range(splits.num_halves):
            groups = {
                name: rows[splits.numbered(name)[:, half // 2] == half] for name, rows in pair.real.groups.items()
            }
            side = pair.real.regrouped(groups, f"half {half}")
            tables[half] = halves[half], scan_counts(side, pair.perturbations, rank_controls(side, CONTROL, 1), 1)
    assert len(halves) == 10
    for found, expected in tables.values():
        assert found.names == expected.names
        assert found.control_cells == expected.control_cells
        for name in ("num_cells", "sums", "columns", "p_value", "control_sums"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        for name in ("cpm", "control_cpm", "correction", "control_correction"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, err_msg=name)


def test_splits_divide_every_group_evenly():
    with opened() as pair:
        splits = split_cells(pair)
    assert len(set(split_seeds())) == 5
    for name, halves in splits.of_cells.items():
        number = len(halves)
        assert all((halves == half).sum(axis=0).tolist() == [number // 2] * 5 for half in (0, 1))
        decoded = splits.members[splits.codes(name)]
        np.testing.assert_array_equal(decoded[:, 0::2], halves == 0)
        np.testing.assert_array_equal(decoded[:, 1::2], halves == 1)


def test_large_groups_are_read_twice_and_give_the_same(monkeypatch):
    first = on_counts(PRED, REAL)
    monkeypatch.setattr("steval.evaluator.measure.counts.STREAMED_CELLS", 7)
    monkeypatch.setattr("steval.evaluator.cells.sides.StoredCells.pieces.__defaults__", (3,))
    second = on_counts(PRED, REAL)
    for name in ("value", "baseline", "replicate"):
        np.testing.assert_allclose(first.breakdown[name], second.breakdown[name], rtol=1e-9)


def test_a_members_place_lies_between_both_ends():
    metrics = [metric for metric in resolve("vcc2026") if metric.best != "none"]
    low = {metric.name: 0.8 if metric.best == "low" else 0.2 for metric in metrics}
    high = {metric.name: 0.2 if metric.best == "low" else 0.8 for metric in metrics}
    scale = ReplicateScale(low, high)
    for values, expected in ((low, 0.0), (high, 1.0)):
        members = replicate_members(np.array([values[metric.name] for metric in metrics]), scale, metrics)
        assert members == pytest.approx(expected)
        assert replicate_overall(members, metrics) == pytest.approx(expected)
    missing = replicate_members(np.full(len(metrics), np.nan), scale, metrics)
    far = replicate_members(np.full(len(metrics), 10.0), scale, metrics)
    kept = {metric.name: value for metric, value in zip(metrics, limited_members(far, metrics), strict=True)}
    worst = {metric.name: value for metric, value in zip(metrics, missing, strict=True)}
    assert kept["de_wilcoxon_lfc_nmae"] == worst["de_wilcoxon_lfc_nmae"] == -6
    assert kept["expr_mse_unbiased_capped_norm"] == worst["expr_mse_unbiased_capped_norm"] == 0
    assert kept["pds_cosine"] == pytest.approx((10 - 0.2) / 0.6)
    assert worst["pds_cosine"] == pytest.approx(-0.2 / 0.6)


def test_a_scale_without_two_ends_gives_no_overall_score():
    _, real = pairs()["no effect"]
    report = on_counts(real, real)
    assert report.score is None
    assert standing(report).sentence.startswith("No overall score: a member of it has no value or no scale")
    told: list[str] = []
    assert "a member has no value or no scale" in render_report(report, told)
    assert told == []
    assert report.overall.height == 1
    told = " ".join(report.record["warnings"])
    assert "there is no overall score" in told
    assert "the real effects are no larger than sampling noise" in told


def test_submissions_need_no_controls_and_their_own_change_nothing():
    bare, own = on_counts(without_controls(PRED), REAL), on_counts(PRED, REAL)
    assert bare.breakdown.equals(own.breakdown)
    assert any("control cells of the predicted cells are left out" in note for note in own.record["notes"])
    assert bare.results["perturbation"].to_list() == sorted(LAW.targets)


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.uint16])
def test_counts_may_be_stored_as_any_number(dtype):
    sides = [cells.copy() for cells in (PRED, REAL)]
    for cells in sides:
        cells.X = cells.X.astype(dtype)
    sides[0].X = sides[0].X.toarray()
    assert on_counts(*sides).breakdown.equals(on_counts(PRED, REAL).breakdown)


def test_each_scale_is_refused_with_the_profiles_that_take_it():
    made = REAL.copy()
    made.X = lognorm(made.X.tocsr(), 1e4)
    takers = ", ".join(name for name, profile in PROFILES.items() if profile.scale == "lognorm")
    with pytest.raises(EvaluationError, match=rf"counts is scored; --profile {takers} takes lognorm"):
        on_counts(made, made)
    with pytest.raises(EvaluationError, match=r"steval prepare makes it of counts\); --profile vcc2026 takes counts"):
        score(REAL, REAL, profile="vcc")
    with pytest.raises(ConfigError, match="mae are computed on lognorm, pds_cosine on counts; score them in two runs"):
        score(REAL, REAL, metrics=("mae", "pds_cosine"))
    with pytest.raises(ConfigError, match="on counts, differential expression is computed from the cells"):
        on_counts(PRED, REAL, de_pred=pl.DataFrame())
    assert score(PRED, REAL, metrics=("pds_cosine",), metrics_only=True).breakdown["metric"].to_list() == ["pds_cosine"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.5, "fractions"), (-1.0, "negative values"), (np.nan, "NaN or infinite"), (2e6, "a cell has 1,000,000 at most")],
)
def test_counts_that_cannot_be_are_refused_when_they_are_read(value, told, monkeypatch):
    monkeypatch.setattr("steval.evaluator.cells.sides.SAMPLE_CELLS", 4)
    made = PRED.copy()
    made.X.data[made.X.indptr[9]] = value  # in a cell that is not among the four
    with pytest.raises(EvaluationError, match=told):
        on_counts(made, REAL)


def test_perturbations_of_no_measured_gene_are_refused():
    sides = []
    for cells in (PRED, REAL):
        made = cells.copy()
        made.obs["target_gene"] = [
            name if name == CONTROL else f"guide-{name}" for name in made.obs["target_gene"].astype(str)
        ]
        sides.append(made)
    with pytest.raises(EvaluationError, match="no perturbation is named after a measured gene"):
        on_counts(*sides)


def test_contexts_are_scored_apart_and_averaged():
    pred, real = pairs()["two contexts"]
    report = on_counts(without_controls(pred), real)
    assert report.record["options"]["by"] == "context"
    assert report.overall["cell_type"].to_list() == [None, "A", "B"]
    assert report.overall["overall"][0] == pytest.approx(report.overall["overall"][1:].mean())
    alone = [cells[(cells.obs["context"] == "B").to_numpy()].copy() for cells in (pred, real)]
    for cells in alone:
        del cells.obs["context"]
    single = on_counts(*alone)
    assert single.breakdown.drop("cell_type").equals(of_type(report.breakdown, "B").drop("cell_type"))
    bare = pred.copy()
    del bare.obs["context"]
    with pytest.raises(
        EvaluationError, match="the real cells have the obs column 'context', the predicted cells do not"
    ):
        on_counts(bare, real)


def test_the_cache_keeps_the_real_side_and_the_scale(tmp_path, monkeypatch):
    path = tmp_path / "real.h5ad"
    REAL.write_h5ad(path)
    first = on_counts(PRED, path, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2

    def forbidden(*_, **__):
        raise AssertionError("the real cells are measured again")

    monkeypatch.setattr("steval.evaluator.measure.count_real.scan_halves", forbidden)
    second = on_counts(PRED, path, cache_dir=tmp_path / "cache")
    assert "the real side came from the cache" in second.record["notes"]
    assert first.breakdown.equals(second.breakdown)
    assert first.results.equals(second.results)
    changed = REAL.copy()
    changed.X.data[0] += 1
    changed.write_h5ad(path)
    with pytest.raises(AssertionError, match="measured again"):
        on_counts(PRED, path, cache_dir=tmp_path / "cache")


def test_one_reading_serves_the_scale_and_the_prediction():
    """Scale, splits and score share what was measured of the real cells."""
    with opened() as pair:
        replicate_scale(pair, resolve("vcc2026"), 1)
        kept = pair.real.tables["counts", CONTROL]
        assert len(kept.halves) == 10
        evaluation = evaluate(pair, "vcc2026", threads=1)
        assert evaluation.counts.real is kept.table


def test_intervals_hold_the_value_and_follow_the_parts_of_a_ratio():
    report = score(PRED, REAL, profile="vcc2026", threads=1, bootstrap=200, integrity="none")
    rows = report.breakdown.filter(pl.col("best") != "none")
    assert (rows["value_low"] <= rows["value"] + 1e-9).all()
    assert (rows["value"] <= rows["value_high"] + 1e-9).all()
    error = rows.row(by_predicate=pl.col("metric") == "expr_mse_unbiased_capped_norm", named=True)
    assert error["value_low"] < error["value"] < error["value_high"]
    assert report.overall["overall_low"][0] < report.score < report.overall["overall_high"][0]


def test_simple_models_start_from_the_measured_controls():
    """Learnt fold changes beat the generic response, which the mean one is about; no change is worse than it."""
    law = CountScreen(num_perturbations=6, num_genes=150, affected=40, depth=4000.0, seed=2)
    sides = [law.cells(seed, each=30, controls=120) for seed in (0, 1, 2)]
    sides[2].obs["cell_type"] = "other"
    report = on_counts(without_controls(sides[1]), sides[0], train=sides[2])
    scores = dict(report.overall.select("predictor", "overall").iter_rows())
    assert set(scores) == {"prediction", "mean", "control", "additive"}
    assert scores["additive"] > 0.7
    assert abs(scores["mean"]) < 0.25
    assert scores["control"] < scores["mean"]
    assert not report.record["warnings"]
    stands = standing(report)
    assert stands.simple_model == "additive"
    assert stands.difference == pytest.approx(100 * (scores["prediction"] - scores["additive"]))
    values = report.baseline_results.filter(pl.col("baseline") == "additive")
    assert values.height == 6
    again = on_counts(without_controls(sides[1]), sides[0], train=sides[2])
    assert again.baseline_results.equals(report.baseline_results)
    lognormal = sides[2].copy()
    lognormal.X = lognorm(lognormal.X.tocsr(), 1e4)
    with pytest.raises(DataError, match="but counts is needed here"):
        on_counts(sides[1], sides[0], train=lognormal)


def test_ridge_predicts_fold_changes_from_features():
    law = CountScreen(num_perturbations=6, num_genes=80, affected=30, seed=2)
    real = law.cells(0)
    features = {name: np.eye(6)[place] for place, name in enumerate(law.targets)}
    report = on_counts(law.cells(1), real, train=law.cells(2), features=features)
    assert "ridge" in report.overall["predictor"].to_list()


def test_counts_are_multiplied_as_sampling_leaves_them():
    counts = sp.csr_matrix(np.full((4000, 3), 6.0, dtype=np.float32))
    made = multiplied(counts, np.array([0.25, 1.0, 3.0]), np.random.default_rng(0)).toarray()
    assert (made == np.rint(made)).all()
    assert (made[:, 1] == 6).all()
    np.testing.assert_allclose(made.mean(axis=0), [1.5, 6, 18], rtol=0.03)
    np.testing.assert_allclose(made.var(axis=0), [6 * 0.25 * 0.75, 0, 12], rtol=0.1)


def test_two_scores_on_counts_are_compared_in_pairs():
    """On one scale, with ratios drawn by their parts; the standing beside a simple model is drawn the same way."""
    law = CountScreen(num_perturbations=6, num_genes=100, affected=40, depth=4000.0, seed=2)
    real, train = law.cells(0), law.cells(2)
    good, bad = (
        score(
            law.cells(1, factor=factor),
            real,
            profile="vcc2026",
            train=train,
            threads=1,
            bootstrap=200,
            integrity="none",
        )
        for factor in (1.0, 0.1)
    )
    rows = {(row["quantity"], row["metric"]): row for row in compare_scores(good, bad, draws=200).iter_rows(named=True)}
    overall = rows["normalised", "overall"]
    assert overall["a"] == pytest.approx(good.score)
    assert overall["b"] == pytest.approx(bad.score)
    assert overall["high"] < 0
    assert rows["unclipped", "expr_mse_unbiased_capped_norm"]["exceeds_noise"]
    assert standing(bad).outcome == "worse"
    assert standing(good).low < standing(good).difference < standing(good).high
    page = render_report(good)
    assert '<th class="n">generic response</th>' in page
    assert "preset vcc2026" in page
