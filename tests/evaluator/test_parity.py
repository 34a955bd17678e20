"""Every metric and every DE column against the installed cell-eval and pdex (docs/parity.md)."""

import warnings

import anndata as ad
import numpy as np
import pytest

from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import evaluate
from support.engine_screens import CONTROL, assert_same_metrics, cell_eval_results, screen

SCREENS = {
    "float32 csr": {},
    "float32 dense": {"dense": True},
    "float64 csr": {"dtype": np.float64},
    "float64 dense": {"dtype": np.float64, "dense": True},
    "float16 dense": {"dtype": np.float16, "dense": True},
    "ties": {"tied": True},
    "ties dense float64": {"tied": True, "dense": True, "dtype": np.float64},
    "one cell": {"one_cell": True},
    "object labels": {"labels": "object"},
    "string labels": {"labels": "string"},
}


def pdex_frame(adata, column="target_gene"):
    from pdex import pdex

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pdex(adata, groupby=column, reference=CONTROL, mode="ref", is_log1p=True, epsilon=0.0)


@pytest.mark.parametrize("name", SCREENS)
def test_full_profile_and_de_equal_cell_evals(name, tmp_path):
    real, pred = screen(**SCREENS[name])
    theirs, evaluator = cell_eval_results(real, pred, "full", tmp_path=tmp_path)
    with Pair.build(pred, real, Columns()) as pair:
        ours = evaluate(pair, "full")
    assert_same_metrics(ours.results, theirs)
    assert theirs["de_nsig_counts_real"].max() > 20
    assert theirs["de_nsig_counts_real"].min() == 0
    for frame, adata in ((ours.de_real, evaluator.anndata_pair.real), (ours.de_pred, evaluator.anndata_pair.pred)):
        expected = pdex_frame(adata)
        assert frame.schema == expected.schema
        for column in frame.columns:
            assert frame[column].equals(expected[column]), column


@pytest.mark.parametrize("profile", ["vcc", "minimal", "de", "anndata", "pds"])
def test_profiles_have_cell_evals_columns(profile, tmp_path):
    real, pred = screen(num_perturbations=5, num_genes=120)
    theirs, _ = cell_eval_results(real, pred, profile, tmp_path=tmp_path, skip_de=profile in ("anndata", "pds"))
    with Pair.build(pred, real, Columns()) as pair:
        assert_same_metrics(evaluate(pair, profile).results, theirs)


def test_real_cells_equal_cell_evals(lognorm_path, tmp_path):
    real = ad.read_h5ad(lognorm_path)
    pred = real.copy()
    generator = np.random.default_rng(0)
    pred.X.data = np.maximum(pred.X.data + generator.normal(0, 0.1, pred.X.nnz), 1e-3).astype(np.float32)
    pred = pred[generator.permutation(pred.n_obs)[:400]].copy()
    theirs, _ = cell_eval_results(real, pred, "full", tmp_path=tmp_path)
    with Pair.build(pred, lognorm_path, Columns()) as pair:
        assert_same_metrics(evaluate(pair, "full").results, theirs)


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("overlap_at_50", {"fdr_threshold": 0.2, "sort_by": "p_value"}),
        ("precision_at_N", {"sort_by": "log2_fold_change"}),
        ("de_sig_genes_recall", {"fdr_threshold": 0.3}),
        ("discrimination_score_l2", {"embed_key": "X_low"}),
        ("discrimination_score_cosine", {"exclude_target_gene": False}),
        ("discrimination_score_l1", {"metric": "chebyshev"}),
        ("mse_delta", {"embed_key": "X_low"}),
        ("pearson_edistance", {"embed_key": "X_low"}),
        ("pearson_edistance", {"metric": "cosine"}),
        ("clustering_agreement", {"metric": "ari", "n_neighbors": 4}),
    ],
)
def test_options_mean_what_they_mean_in_cell_eval(metric, options, tmp_path):
    from cell_eval import DESortBy, metrics_registry

    real, pred = screen(num_perturbations=6, num_genes=150)
    _, evaluator = cell_eval_results(real, pred, "pds", tmp_path=tmp_path)
    theirs_options = options | ({"sort_by": DESortBy(options["sort_by"])} if "sort_by" in options else {})
    is_de = metrics_registry.get_metric(metric).type.value == "de"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = evaluator.de_comparison if is_de else evaluator.anndata_pair
        expected = metrics_registry.compute(metric, data, kwargs=theirs_options)
    with Pair.build(pred, real, Columns()) as pair:
        results = evaluate(pair, [metric], options={metric: options}).results
    for row in results.iter_rows(named=True):
        value = expected.get(row["perturbation"]) if isinstance(expected, dict) else expected
        assert row[metric] == (value if value is None else pytest.approx(value, abs=1e-6, nan_ok=True))
