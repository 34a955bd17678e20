"""Whole jobs as `steval predict` and batch manifests describe them."""

import anndata as ad
import numpy as np
import pytest

from steval.data.cells.record import read_record
from steval.errors import ConfigError, DataError
from steval.predictor.job import PredictionJob, run_job


def job(checkpoint, tmp_path, **values):
    return PredictionJob.parse({"checkpoint": checkpoint.path, "out": tmp_path / "p.h5ad", **values})


def test_as_in_this_file_takes_its_controls(checkpoint, cells_path, cells, tmp_path):
    done = run_job(job(checkpoint, tmp_path, request=cells_path))
    assert (done.num_cells, done.num_controls, done.num_rows) == (500, 100, 600)
    written = ad.read_h5ad(done.path)
    expected = cells.obs["target_gene"].astype(str).value_counts()
    assert written.obs["target_gene"].astype(str).value_counts().to_dict() == expected.to_dict()
    assert read_record(written.uns)["details"]["controls"]["source"] == str(cells_path)


def test_as_in_a_file_without_controls_takes_the_checkpoints(checkpoint, cells, tmp_path):
    path = tmp_path / "perturbed.h5ad"
    cells[(cells.obs["target_gene"] == "SRC").to_numpy()].copy().write_h5ad(path)
    done = run_job(job(checkpoint, tmp_path, request=path))
    assert read_record(ad.read_h5ad(done.path).uns)["details"]["controls"] == {"source": "checkpoint"}


def test_by_batch_starts_each_batch_from_its_own_controls(checkpoint, cells, tmp_path):
    controls = cells[(cells.obs["target_gene"] == "non-targeting").to_numpy()]
    batches = controls.obs["batch"].astype(str).value_counts().index[:2]
    path = tmp_path / "two.h5ad"
    cells[cells.obs["batch"].astype(str).isin(batches).to_numpy()].copy().write_h5ad(path)
    done = run_job(job(checkpoint, tmp_path, request=path, by_batch=True))
    written = ad.read_h5ad(done.path).obs
    real = ad.read_h5ad(path).obs
    keys = ["target_gene", "batch"]
    counted = [obs.groupby([obs[key].astype(str) for key in keys]).size().to_dict() for obs in (written, real)]
    assert counted[0] == counted[1]


def test_cell_types_of_an_h5ad_request(checkpoint, cells, tmp_path):
    both = cells.copy()
    both.obs["cell_type"] = ["A" if row % 3 else "B" for row in range(both.n_obs)]
    path = tmp_path / "both.h5ad"
    both.write_h5ad(path)
    written = ad.read_h5ad(run_job(job(checkpoint, tmp_path, request=path, cell_types=["A"])).path).obs
    assert set(written["cell_type"]) == {"A"}
    expected = both.obs[both.obs["cell_type"] == "A"]["target_gene"].astype(str).value_counts()
    assert written["target_gene"].astype(str).value_counts().to_dict() == expected.to_dict()
    everything = run_job(job(checkpoint, tmp_path, request=path, cell_types=["all"]))
    assert everything.num_rows == both.n_obs
    with pytest.raises(ConfigError, match="no perturbed cells of cell type 'C'; it holds: A, B"):
        run_job(job(checkpoint, tmp_path, request=path, cell_types=["A", "C"]))


def test_cell_types_of_an_h5ad_that_names_none(checkpoint, cells_path, tmp_path, caplog):
    with caplog.at_level("INFO"):
        done = run_job(job(checkpoint, tmp_path, request=cells_path, cell_types=["H1"], max_cells=2))
    assert done.num_cells == 10
    assert "names no cell types: all of it is predicted in H1" in caplog.text
    with pytest.raises(ConfigError, match="hold no cells of cell type 'K562'; they hold: H1"):
        run_job(job(checkpoint, tmp_path, request=cells_path, cell_types=["K562"]))


def test_mean_profiles_are_the_means_of_the_cells(checkpoint, cells, tmp_path):
    run_job(job(checkpoint, tmp_path, all=True, cells=50, seed=2))
    whole = ad.read_h5ad(tmp_path / "p.h5ad")
    done = run_job(job(checkpoint, tmp_path, all=True, cells=50, seed=2, output="mean", out=tmp_path / "m.h5ad"))
    means = ad.read_h5ad(done.path)
    assert list(means.obs["target_gene"]) == ["non-targeting", "MED12", "SRC", "STAT1", "TET1", "TMSB4X"]
    assert list(means.obs["num_cells"]) == [100, 50, 50, 50, 50, 50]
    for row, name in enumerate(means.obs["target_gene"]):
        expected = whole[(whole.obs["target_gene"] == name).to_numpy()].X.toarray().mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(means.X[row].toarray()[0], expected, rtol=1e-5, atol=1e-7)


def test_limits_and_clip(checkpoint, cells_path, tmp_path):
    written = {"clip_high": 0.25}
    done = run_job(job(checkpoint, tmp_path, request=cells_path, max_cells=7, written=written))
    found = ad.read_h5ad(done.path)
    predicted = found[found.obs["predicted"].to_numpy()]
    assert (done.num_cells, predicted.n_obs) == (35, 35)
    assert predicted.X.max() == 0.25
    assert found[~found.obs["predicted"].to_numpy()].X.max() > 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        pytest.param(
            {"all": True, "perturbations": ["SRC"]}, "in one way, got --perturbations and --all", id="asked twice"
        ),
        pytest.param({"all": True, "by_batch": True}, "there is no such request", id="by batch without a file"),
        pytest.param({"all": True, "cells": 0}, "cells: Input should be greater", id="no cells"),
        pytest.param({"all": True, "written": {"clip_low": 2, "clip_high": 1}}, "must be under clip_high", id="clip"),
        pytest.param({"all": True, "written": {"clip_low": float("nan")}}, "finite", id="clip nan"),
        pytest.param({"all": True, "written": {"median_depth": 5}}, "for scale counts", id="depth without counts"),
        pytest.param({"all": True, "sed": 1}, "did you mean 'seed'", id="misspelt"),
    ],
)
def test_bad_jobs(checkpoint, tmp_path, values, match):
    with pytest.raises(ConfigError, match=match):
        job(checkpoint, tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        pytest.param({"perturbations": ["SRC"], "cell_types": ["K562"]}, ConfigError, "they hold: H1", id="cell type"),
        pytest.param({"perturbations": ["SRCC"]}, DataError, "'SRCC': nearest known SRC", id="unknown"),
        pytest.param({"all": True, "controls": "absent.h5ad"}, DataError, "no such data file", id="no controls file"),
        pytest.param({"all": True, "columns": {"control": "NT"}}, ConfigError, "no file with control", id="control"),
        pytest.param({"all": True, "features": "f.npz"}, ConfigError, "one-hot", id="features of one-hot"),
        pytest.param(
            {"perturbations": ["non-targeting"]}, ConfigError, "the control 'non-targeting' itself", id="control"
        ),
        pytest.param({"all": True, "device": "tpu"}, ConfigError, "allowed: auto, cpu, cuda", id="device"),
    ],
)
def test_jobs_that_cannot_be_done_leave_no_file(checkpoint, tmp_path, values, error, match):
    with pytest.raises(error, match=match):
        run_job(job(checkpoint, tmp_path, **values))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_controls_needs_a_file(checkpoint, cells_path, tmp_path):
    from steval.checkpoints.store import save_checkpoint

    bare = tmp_path / "bare.safetensors"
    save_checkpoint(
        bare, manifest=checkpoint.manifest, weights=checkpoint.weights, features=checkpoint.features, controls=None
    )
    values = {"checkpoint": bare, "out": tmp_path / "p.h5ad", "perturbations": ["SRC"], "cells": 3}
    with pytest.raises(ConfigError, match="carries no control cells"):
        run_job(PredictionJob.parse(values))
    assert run_job(PredictionJob.parse({**values, "controls": cells_path})).num_cells == 3
