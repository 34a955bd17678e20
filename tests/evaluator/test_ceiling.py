"""The split of real cells into halves: the same cells as cell-eval takes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cell_eval import MetricsEvaluator
from cell_eval._evaluator import SB_METRICS

from steval.errors import EvaluationError
from steval.evaluator.metrics.catalog import CATALOG
from steval.evaluator.reference.ceiling import disjoint_halves, spearman_brown


@pytest.mark.filterwarnings("ignore:the string cache:DeprecationWarning")
@pytest.mark.parametrize("categorical", [False, True])
def test_halves_are_cell_evals(tmp_path, categorical):
    generator = np.random.default_rng(5)
    labels = generator.choice(["ctrl", "b", "a", "Z", "10", "9"], 83).astype(object)
    labels[0], labels[-1] = "single", "ctrl"
    obs = pd.DataFrame({"target": labels}, index=[str(i) for i in range(83)])
    if categorical:
        obs["target"] = pd.Categorical(obs["target"], categories=["unused", *np.unique(labels)[::-1]])
    cells = ad.AnnData(generator.uniform(0, 3, (83, 4)).astype(np.float32), obs=obs)
    evaluator = MetricsEvaluator(None, cells, control_pert="ctrl", pert_col="target", outdir=str(tmp_path / "out"))
    expected = evaluator._disjoint_halves(7)
    first, second, dropped = disjoint_halves(obs["target"] if categorical else labels, "ctrl", 7)
    assert list(expected[0].obs_names) == [str(i) for i in first]
    assert list(expected[1].obs_names) == [str(i) for i in second]
    assert dropped == ["single"]
    assert not set(first) & set(second)


def test_correction_covers_cell_evals_metrics():
    assert {name for name, metric in CATALOG.items() if metric.corrected} == SB_METRICS
    assert spearman_brown("pearson_delta", 0.5) == pytest.approx(2 / 3)
    assert np.isnan(spearman_brown("mae", 0.5))
    assert np.isnan(spearman_brown("pearson_delta", -0.1))
    assert np.isnan(spearman_brown("pearson_delta", None))


def test_a_control_of_one_cell_is_an_error():
    with pytest.raises(EvaluationError, match="fewer than 2 real cells"):
        disjoint_halves(["ctrl", "a", "a"], "ctrl", 0)
    with pytest.raises(EvaluationError, match="no perturbation has 2"):
        disjoint_halves(["ctrl", "ctrl", "a"], "ctrl", 0)
