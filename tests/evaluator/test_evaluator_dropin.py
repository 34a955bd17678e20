"""`MetricsEvaluator` beside cell_eval's own: the same frames, the same files."""

import warnings

import numpy as np
import polars as pl
import pytest
from engine_screens import screen
from polars.testing import assert_frame_equal

from steval.errors import EvaluationError

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
    with pytest.raises(EvaluationError, match="at least three"):
        evaluator.compute(profile="anndata", write_csv=False, break_on_error=True)


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
    from steval.evaluator.pack import pack
    from steval.evaluator.score import score

    assert steval.evaluator.score is score
    assert steval.evaluator.pack is pack
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = steval.evaluator.scores
