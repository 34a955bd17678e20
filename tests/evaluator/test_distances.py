"""Energy distances, discrimination and clustering against scikit-learn and cell-eval's own loops."""

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as skm
from sklearn.metrics import pairwise_distances

from steval.evaluator.measure.distances import ControlDistances
from steval.evaluator.metrics.clustering import clustering_agreement
from steval.evaluator.metrics.discrimination import discrimination_scores


def energy(cells, control):
    return 2 * skm.pairwise_distances(cells, control).mean() - sum(
        skm.pairwise_distances(group).mean() for group in (cells, control)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [True, False])
def test_energy_distance_is_that_of_all_pairs(dtype, sparse):
    generator = np.random.default_rng(0)
    control = generator.gamma(1.0, size=(90, 200)).astype(dtype)
    cells = generator.gamma(1.2, size=(31, 200)).astype(dtype)
    kind = sp.csr_matrix if sparse else np.asarray
    found = ControlDistances(kind(control)).energy(kind(cells))
    assert found == pytest.approx(float(energy(cells, control)), abs=4e-6 if dtype == np.float32 else 1e-12)


def test_blocks_of_controls_do_not_change_the_distance(monkeypatch):
    generator = np.random.default_rng(0)
    control, cells = generator.gamma(1.0, size=(90, 50)), generator.gamma(1.2, size=(31, 50))
    whole = ControlDistances(control).energy(cells)
    monkeypatch.setattr("steval.evaluator.measure.distances.BLOCK_CELLS", 17)
    monkeypatch.setattr("steval.evaluator.measure.distances.DENSE_CONTROL_BYTES", 0)
    monkeypatch.setattr("steval.evaluator.measure.distances.PAIRS_AT_ONCE", 10)
    assert ControlDistances(control).energy(cells) == pytest.approx(whole, abs=1e-12)


def test_identical_cells_have_no_distance_among_themselves():
    control = np.zeros((3, 4))
    cells = np.tile([3.0, 4.0, 0.0, 0.0], (5, 1))
    assert ControlDistances(control).energy(cells) == pytest.approx(10.0)


def upstream_scores(real, predicted, names, features, metric):
    """cell-eval 0.8.2's loop."""
    scores = {}
    for row, name in enumerate(names):
        kept = np.flatnonzero(np.asarray(features) != name) if features is not None else slice(None)
        distances = pairwise_distances(real[:, kept], predicted[row, kept].reshape(1, -1), metric=metric).flatten()
        rank = np.flatnonzero(np.argsort(distances) == row)[0]
        scores[name] = 1 - rank / len(names)
    return scores


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "manhattan", "euclidean", "chebyshev", "correlation"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features", ["some", "repeated", None])
def test_discrimination_is_cell_evals_loop(metric, dtype, features):
    generator = np.random.default_rng(2)
    names = [f"g{i}" for i in range(30)] + [f"drug{i}" for i in range(10)]
    genes = None if features is None else [f"g{i % 90 if features == 'repeated' else i}" for i in range(120)]
    real = generator.normal(size=(40, 120)).astype(dtype)
    predicted = (0.1 * real + generator.normal(size=(40, 120))).astype(dtype)
    found = discrimination_scores(real, predicted, names, genes, metric)
    assert found == upstream_scores(real, predicted, names, genes, metric)
    assert len(set(found.values())) > 5


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_ties_fall_as_in_cell_eval(metric):
    generator = np.random.default_rng(3)
    names = [f"drug{i}" for i in range(24)]
    real = np.repeat(generator.normal(size=(4, 60)), 6, axis=0).astype(np.float32)
    for predicted in (real.copy(), np.tile(real[:1], (24, 1)), np.zeros_like(real)):
        found = discrimination_scores(real, predicted, names, None, metric)
        assert found == upstream_scores(real, predicted, names, None, metric)


def test_effects_on_the_target_alone_are_not_seen():
    names = [f"g{i}" for i in range(12)]
    real = np.eye(12, 40, dtype=np.float32) * 30 + np.random.default_rng(0).normal(0, 1e-3, (12, 40)).astype(np.float32)
    predicted = np.eye(12, 40, dtype=np.float32) * 30
    found = discrimination_scores(real, predicted, names, [f"g{i}" for i in range(40)], "l2")
    assert found == upstream_scores(real, predicted, names, [f"g{i}" for i in range(40)], "l2")


def test_same_profiles_cluster_alike():
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(3, 30)) * 10, 8, axis=0) + generator.normal(size=(24, 30))
    names = [f"p{i:02d}" for i in range(24)]
    options = {"real_resolution": 1.0, "pred_resolutions": (1.0,), "metric": "ami", "n_neighbors": 5}
    assert clustering_agreement(centres, centres, names, options) == pytest.approx(1.0)
    shuffled = centres[generator.permutation(24)]
    assert clustering_agreement(centres, shuffled, names, options) < 0.5
