"""`MetricsEvaluator` beside cell_eval's own: the same frames, the same files."""

import warnings

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from support.engine_screens import screen

SYNTHETIC = {"control_pert": "non-targeting", "pert_col": "target_gene"}
RANDOM = {"control_pert": "control", "pert_col": "perturbation"}


@pytest.fixture(autouse=True)
def _registry():
    """cell_eval keeps options of one call for all later ones in the process: its registry is put back."""
    from cell_eval import metrics_registry

    kept = {name: dict(metric.kwargs or {}) for name, metric in metrics_registry.metrics.items()}
    yield
    for name, options in kept.items():
        metrics_registry.metrics[name].kwargs = options


@pytest.fixture(autouse=True)
def _quiet():
    """cell_eval's and scanpy's warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def random_pair(**arguments):
    from cell_eval.data import build_random_anndata, downsample_cells

    real = build_random_anndata(n_cells=400, n_genes=60, n_perts=6, **arguments)
    return real, downsample_cells(real, 0.7)


def reordered():
    real, pred = screen(num_perturbations=6, num_genes=100)
    for side in (real, pred):
        labels = side.obs["target_gene"]
        side.obs["target_gene"] = labels.cat.reorder_categories(list(labels.cat.categories[::-1]))
    return real, pred


CASES = {
    "float32": (lambda: screen(num_perturbations=6, num_genes=100), SYNTHETIC),
    "float64 dense": (random_pair, RANDOM),
    "counts made lognorm": (lambda: random_pair(normlog=False), RANDOM),
    "counts kept": (lambda: random_pair(normlog=False), {**RANDOM, "allow_discrete": True}),
    "arithmetic means": (random_pair, {**RANDOM, "pdex_kwargs": {"geometric_mean": False, "threads": 4}}),
    "pseudocount and prefix": (random_pair, {**RANDOM, "pdex_kwargs": {"epsilon": 1e-3}, "prefix": "a/b"}),
    "order of categories": (reordered, SYNTHETIC),
}


def run(kind, real, pred, outdir, settings):
    evaluator = kind(adata_pred=pred.copy(), adata_real=real.copy(), outdir=str(outdir), **settings)
    frames = [evaluator.compute(profile=profile, basename=f"{profile}.csv") for profile in ("minimal", "de")]
    skipped = evaluator.compute(
        skip_metrics=["clustering_agreement", "pr_auc"],
        metric_configs={"discrimination_score_l2": {"exclude_target_gene": False}},
        basename="some.csv",
    )
    return [frame for pair in [*frames, skipped, evaluator.compute_ceiling(profile="vcc", seed=3)] for frame in pair]


@pytest.mark.parametrize("case", CASES)
def test_frames_and_files_are_cell_evals(case, tmp_path):
    from cell_eval import MetricsEvaluator as Theirs

    from steval.evaluator import MetricsEvaluator as Ours

    make, settings = CASES[case]
    real, pred = make()
    expected = run(Theirs, real, pred, tmp_path / "theirs", settings)
    found = run(Ours, real, pred, tmp_path / "ours", settings)
    for ours, theirs in zip(found, expected, strict=True):
        assert_frame_equal(ours, theirs, abs_tol=1e-6, rel_tol=0)
    files = [sorted(path.name for path in (tmp_path / who).iterdir()) for who in ("theirs", "ours")]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith("_de.csv"):
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    if case == "float32":
        for name in files[0]:
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name


def test_a_failed_metric_is_left_out_as_cell_eval_does(tmp_path):
    from steval.evaluator import MetricsEvaluator

    real, pred = screen(num_perturbations=2, num_genes=60)
    evaluator = MetricsEvaluator(pred, real, outdir=str(tmp_path / "out"), skip_de=True, **SYNTHETIC)
    results, _ = evaluator.compute(profile="anndata", write_csv=False)
    assert "clustering_agreement" not in results.columns
    assert "mae" in results.columns


def outcome(kind, pair, outdir, call, **settings):
    """What a call returns, or the error it raises."""
    try:
        copies = (None if cells is None else cells.copy() for cells in pair)
        return call(kind(*copies, outdir=str(outdir), **(SYNTHETIC | settings)))
    except Exception as error:  # noqa: BLE001  (whatever cell_eval raises)
        return type(error), str(error)


def on_two(evaluator):
    return evaluator.compute(profile="anndata", break_on_error=True)


def without_prediction(evaluator):
    return evaluator.compute()


def with_options(**options):
    others = ["mse", "pearson_edistance", "clustering_agreement"]
    return lambda evaluator: evaluator.compute(
        profile="anndata", skip_metrics=others, metric_configs=options, break_on_error=True
    )


FAILING = {
    "clusters of two": (2, on_two, {"skip_de": True}),
    "no such option": (4, with_options(mae={"power": 3}), {"skip_de": True}),
    "no such embedding": (4, with_options(mae={"embed_key": "nowhere"}), {"skip_de": True}),
    "no such profile": (4, lambda evaluator: evaluator.compute(profile="all"), {"skip_de": True}),
    "nothing to compute": (4, lambda evaluator: evaluator.compute(profile="de"), {"skip_de": True}),
    "no such control": (4, on_two, {"control_pert": "nobody"}),
    "no such column": (4, on_two, {"pert_col": "nowhere"}),
    "no such reference": (4, on_two, {"pdex_kwargs": {"reference": "nobody"}}),
    "a DE table of another kind": (4, on_two, {"de_real": ["rows"]}),
    "a DE table without FDR": (4, on_two, {"de_real": pl.DataFrame({"target": ["a"], "feature": ["b"]})}),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_fails_in_cell_eval_fails_with_the_same_error(case, tmp_path):
    from cell_eval import MetricsEvaluator as Theirs

    from steval.evaluator import MetricsEvaluator as Ours

    number, call, settings = FAILING[case]
    pair = screen(num_perturbations=number, num_genes=60, cells=20, controls=40)[::-1]
    found = outcome(Ours, pair, tmp_path / "ours", call, **settings)
    assert isinstance(found[0], type), found
    assert found == outcome(Theirs, pair, tmp_path / "theirs", call, **settings)


def test_an_evaluator_without_prediction_refuses_in_cell_evals_words(tmp_path):
    from cell_eval import MetricsEvaluator as Theirs

    from steval.evaluator import MetricsEvaluator as Ours

    real = screen(num_perturbations=3, num_genes=60, cells=20, controls=40)[0]
    found = [outcome(kind, (None, real), tmp_path / kind.__module__, without_prediction) for kind in (Ours, Theirs)]
    assert found[0] == found[1]
    assert found[0][0] is ValueError


@pytest.fixture
def small(tmp_path):
    from steval.evaluator import MetricsEvaluator

    real, pred = screen(num_perturbations=4, num_genes=80, cells=25, controls=50)
    return MetricsEvaluator(pred, real, outdir=str(tmp_path / "out"), **SYNTHETIC)


class Unexpected(Exception):
    """Of a kind that no metric of ours raises."""


def test_metrics_that_a_user_registers_are_computed_and_may_fail_in_any_way(small, monkeypatch):
    from cell_eval import metrics_registry
    from cell_eval._types import MetricBestValue, MetricType

    def fail(_):
        raise Unexpected("as it likes")

    monkeypatch.setattr(metrics_registry, "metrics", dict(metrics_registry.metrics))
    own = {"length": lambda pair: {perturbation: float(len(perturbation)) for perturbation in pair.perts}, "bad": fail}
    for name, function in own.items():
        metrics_registry.register(name, MetricType.ANNDATA_PAIR, name, function, MetricBestValue.ONE)
    others = ["pearson_edistance", "clustering_agreement"]
    results, _ = small.compute(profile="anndata", skip_metrics=others, write_csv=False)
    assert results["length"].to_list() == [float(len(name)) for name in results["perturbation"]]
    assert "bad" not in results.columns
    with pytest.raises(Unexpected):
        small.compute(profile="anndata", skip_metrics=others, write_csv=False, break_on_error=True)


def test_a_metric_or_comparison_that_a_user_puts_in_place_is_used(small, monkeypatch):
    from cell_eval import metrics_registry
    from cell_eval._types import initialize_de_comparison

    before, _ = small.compute(profile="minimal", write_csv=False)
    monkeypatch.setattr(metrics_registry.metrics["mae"], "func", lambda pair, **_: 7.0)
    sides = small.de_comparison
    small.de_comparison = initialize_de_comparison(real=sides.pred.data, pred=sides.real.data)
    after, _ = small.compute(profile="minimal", write_csv=False)
    assert set(after["mae"]) == {7.0}
    assert after.sort("perturbation")["de_nsig_counts_pred"].to_list() == (
        before.sort("perturbation")["de_nsig_counts_real"].to_list()
    )
    assert after["mse"].equals(before["mse"])
    small.de_comparison = None
    assert "de_nsig_counts_real" not in small.compute(profile="minimal", write_csv=False)[0].columns


def test_cells_that_the_engine_refuses_go_through_pdex(tmp_path, monkeypatch, caplog):
    from steval.errors import DataError
    from steval.evaluator import MetricsEvaluator

    pair = screen(num_perturbations=4, num_genes=80, cells=25, controls=50)[::-1]
    expected = outcome(MetricsEvaluator, pair, tmp_path / "a", lambda e: e.compute(profile="vcc")[0])

    def refuse(*_, **__):
        raise DataError("not with these cells")

    monkeypatch.setattr("steval.evaluator.dropin.scan", refuse)
    found = outcome(MetricsEvaluator, pair, tmp_path / "b", lambda e: e.compute(profile="vcc")[0])
    assert_frame_equal(found, expected, abs_tol=1e-6, rel_tol=0)
    assert "goes through pdex: not with these cells" in caplog.text
    assert (tmp_path / "a" / "real_de.csv").read_bytes() == (tmp_path / "b" / "real_de.csv").read_bytes()


def test_options_do_not_outlive_a_call(tmp_path):
    from steval.evaluator import MetricsEvaluator

    real, pred = screen(num_perturbations=4, num_genes=80)
    evaluator = MetricsEvaluator(pred, real, outdir=str(tmp_path / "out"), **SYNTHETIC)
    before, _ = evaluator.compute(profile="de", write_csv=False)
    other, _ = evaluator.compute(
        profile="de", write_csv=False, metric_configs={"de_nsig_counts": {"fdr_threshold": 0.5}}
    )
    after, _ = evaluator.compute(profile="de", write_csv=False)
    assert before.equals(after, null_equal=True)
    assert not other.equals(before, null_equal=True)


def test_ceiling_needs_no_prediction(tmp_path):
    from steval.evaluator import MetricsEvaluator

    real, _ = screen(num_perturbations=4, num_genes=80)
    alone = MetricsEvaluator(None, real.copy(), outdir=str(tmp_path / "a"), **SYNTHETIC)
    assert alone.ceiling_only
    assert alone.de_comparison is None
    assert alone.anndata_pair.real is alone.anndata_pair.pred
    with pytest.raises(ValueError, match="ceiling-only mode"):
        alone.compute()
    with_pred = MetricsEvaluator(real.copy(), real.copy(), outdir=str(tmp_path / "b"), **SYNTHETIC)
    ceilings = [evaluator.compute_ceiling(profile="minimal")[1] for evaluator in (alone, with_pred)]
    assert_frame_equal(*ceilings)
    assert (tmp_path / "a" / "agg_ceiling_results.csv").is_file()


def test_paths_and_de_tables_are_read(tmp_path):
    from steval.evaluator import MetricsEvaluator

    real, pred = screen(num_perturbations=4, num_genes=80)
    real.write_h5ad(tmp_path / "real.h5ad")
    pred.write_h5ad(tmp_path / "pred.h5ad")
    paths = {"adata_pred": str(tmp_path / "pred.h5ad"), "adata_real": str(tmp_path / "real.h5ad"), **SYNTHETIC}
    first = MetricsEvaluator(outdir=str(tmp_path / "one"), **paths)
    expected, _ = first.compute(profile="de")
    tables = {side: str(tmp_path / "one" / f"{side}_de.csv") for side in ("real", "pred")}
    given = {
        "paths": tables,
        "polars": {side: pl.read_csv(path) for side, path in tables.items()},
        "pandas": {side: pl.read_csv(path).to_pandas() for side, path in tables.items()},
    }
    for name, sources in given.items():
        evaluator = MetricsEvaluator(
            outdir=str(tmp_path / name), de_real=sources["real"], de_pred=sources["pred"], **paths
        )
        found, _ = evaluator.compute(profile="de")
        np.testing.assert_allclose(
            found.drop("perturbation").cast(pl.Float64).to_numpy(),
            expected.drop("perturbation").cast(pl.Float64).to_numpy(),
            atol=1e-6,
            equal_nan=True,
        )
        assert not (tmp_path / name / "real_de.csv").exists()


def test_the_room_gives_functions_not_modules():
    import steval.evaluator
    from steval.evaluator.scoring import score
    from steval.evaluator.submission import pack

    assert steval.evaluator.score is score
    assert steval.evaluator.pack is pack
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = steval.evaluator.scores
