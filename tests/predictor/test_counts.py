"""Counts: depths are those of the measured cells, shares those of the predicted ones."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.data.example import example
from steval.errors import ConfigError, DataError
from steval.predictor.cells.counts import draw_counts, restore_counts, round_counts
from steval.predictor.controls import file_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.output import OutputOptions
from steval.predictor.requests import PredictionRequest, request_names


@pytest.mark.parametrize("target_sum", [200.0, 1e4, 1e6])
def test_counts_are_restored_from_lognorm(target_sum):
    counts = example().X.tocsr()
    restored = restore_counts(lognorm(counts, target_sum), "the cells")
    assert (restored != counts).nnz == 0


def test_counts_without_a_single_molecule_are_restored():
    counts = sp.csr_matrix(np.array([[2.0, 0, 3, 7], [4, 6, 9, 0], [0, 0, 0, 0]], dtype=np.float32))
    assert (restore_counts(lognorm(counts, 1e4), "the cells") != counts).nnz == 0


def test_values_that_were_never_counts():
    cells = sp.csr_matrix(np.random.default_rng(0).uniform(0.1, 5, (3, 50)).astype(np.float32))
    with pytest.raises(DataError, match="cannot be read off"):
        restore_counts(cells, "the cells")


def test_drawn_counts_have_the_depth_and_the_shares():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.2, 0.0])
    cells = np.tile(np.log1p(1e4 * share), (200, 1)).astype(np.float32)
    cells[7] = 0
    drawn = draw_counts(cells, np.full(200, 1000), rng)
    assert (drawn.sum(axis=1) == np.where(np.arange(200) == 7, 0, 1000)).all()
    np.testing.assert_allclose(drawn.sum(axis=0) / drawn.sum(), share, atol=0.005)


def test_what_is_whole_stays_and_the_rest_is_rounded_by_chance():
    """A row of shares .5, .25, .25 at depth 6 is 3, 1.5, 1.5: the first is certain, the others are 1 or 2, together 3."""
    cells = sp.csr_matrix(np.tile(np.log1p([100.0, 0, 50, 50]), (4000, 1)).astype(np.float32))
    counts = round_counts(cells, np.full(4000, 6), np.random.default_rng(0).random(4000)).toarray()
    assert (counts[:, 0] == 3).all() and (counts[:, 1] == 0).all()
    assert set(counts[:, 2].tolist()) == {1, 2}
    assert (counts.sum(axis=1) == 6).all()
    assert counts[:, 2].mean() == pytest.approx(1.5, abs=0.03)


def test_measured_cells_come_back_whatever_is_drawn():
    counts = example().X.tocsr()
    depths = np.asarray(counts.sum(axis=1)).ravel()
    for starts in (np.zeros(len(depths)), np.full(len(depths), 1 - 1e-9), np.random.default_rng(1).random(len(depths))):
        assert (round_counts(lognorm(counts, 1e4), depths, starts) != counts).nnz == 0


def test_rounded_totals_are_exact_at_any_depth_and_empty_cells_stay_empty():
    rng = np.random.default_rng(2)
    dense = rng.gamma(0.3, 2.0, (300, 700)) * (rng.random((300, 700)) < 0.2)
    dense[5] = 0
    depths = rng.integers(1, 1_000_001, 300)
    counts = round_counts(sp.csr_matrix(dense.astype(np.float32)), depths, rng.random(300))
    assert (counts.data > 0).all() and (counts.data == np.rint(counts.data)).all()
    wanted = np.where(np.arange(300) == 5, 0, depths)
    np.testing.assert_array_equal(np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(), wanted)


def written(checkpoint, cells_path, tmp_path, request, **options):
    with file_controls(cells_path, checkpoint.manifest) as pool:
        path = tmp_path / "counts.h5ad"
        batch_cells = options.pop("batch_cells", 4096)
        predictor = Predictor(checkpoint, batch_cells=batch_cells)
        predict_into(path, predictor, request, pool, OutputOptions(scale="counts", **options))
    return ad.read_h5ad(path)


@pytest.mark.parametrize("sampling", ["rounded", "multinomial"])
def test_file_of_counts_has_each_controls_own_total(checkpoint, cells_path, tmp_path, sampling):
    request = request_names(["SRC", "STAT1"], 20)
    found = written(checkpoint, cells_path, tmp_path, request, count_sampling=sampling)
    totals = dict(zip(found.obs_names, np.asarray(found.X.sum(axis=1)).ravel(), strict=True))
    true = dict(zip(example().obs_names, np.asarray(example()[:, :120].X.sum(axis=1)).ravel(), strict=True))
    assert found.uns["steval"]["scale"] == "counts"
    assert "target_sum" not in found.uns["steval"]
    for name, control in found.obs["control_cell"].items():
        assert totals[name] == true[control]


def test_depth_as_the_challenge_asks(checkpoint, cells_path, tmp_path):
    items = [
        {"perturbation": "SRC", "num_cells": 100, "median_umi": 500},
        {"perturbation": "TET1", "num_cells": 100, "median_umi": 50_000},
    ]
    found = written(checkpoint, cells_path, tmp_path, PredictionRequest.parse({"items": items}))
    totals = found.obs.assign(total=np.asarray(found.X.sum(axis=1)).ravel()).groupby("target_gene", observed=True)
    median = totals["total"].median()
    assert median["SRC"] == pytest.approx(500, rel=0.15)
    assert median["TET1"] == pytest.approx(50_000, rel=0.15)


def test_counts_do_not_depend_on_the_batch_size(checkpoint, cells_path, tmp_path):
    request = request_names(["SRC", "STAT1"], 40)
    one = written(checkpoint, cells_path, tmp_path, request)
    other = written(checkpoint, cells_path, tmp_path, request, batch_cells=16)
    difference = np.abs(one.X.toarray() - other.X.toarray())
    assert (difference > 0).mean() < 1e-3


def test_mean_profiles_have_no_counts(checkpoint, cells_path, tmp_path):
    request = request_names(["SRC"], 4, output="mean")
    with pytest.raises(ConfigError, match="mean profiles are of the checkpoint's scale"):
        written(checkpoint, cells_path, tmp_path, request)
    assert not (tmp_path / "counts.h5ad").exists()
