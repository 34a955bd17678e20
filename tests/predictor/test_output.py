"""Files of predictions: what is in them, and that nothing is left when the work breaks."""

import anndata as ad
import numpy as np
import pytest

from steval.data.cells.record import read_record
from steval.errors import ConfigError
from steval.predictor.controls import checkpoint_controls, file_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.output import OutputOptions, write_predictions
from steval.predictor.requests import request_names


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_file_holds_measured_controls_then_the_predicted_cells(checkpoint, cells, cells_path, tmp_path, layout):
    request = request_names(["STAT1", "SRC"], 40, seed=1)
    with file_controls(cells_path, checkpoint.manifest) as pool:
        path = tmp_path / "preds.h5ad"
        done = predict_into(path, Predictor(checkpoint), request, pool, OutputOptions(layout=layout))
        expected = np.concatenate([one.cells for one in Predictor(checkpoint).predict(request, pool)])
    assert (done.num_cells, done.num_controls) == (80, 100)
    written = ad.read_h5ad(path)
    X = written.X.toarray() if layout == "csr" else written.X
    measured = cells[(cells.obs["target_gene"] == "non-targeting").to_numpy()]
    np.testing.assert_array_equal(X[:100], measured.X.toarray())
    np.testing.assert_array_equal(X[100:], expected)
    assert list(written.var_names) == list(cells.var_names)
    assert list(written.obs["target_gene"]) == ["non-targeting"] * 100 + ["STAT1"] * 40 + ["SRC"] * 40
    assert written.obs_names.is_unique
    started_from = measured.obs.loc[written.obs["control_cell"][100:], "batch"].astype(str)
    assert list(written.obs["batch"][100:].astype(str)) == list(started_from)


def test_record_says_everything(checkpoint, tmp_path):
    path = tmp_path / "preds.h5ad"
    request = request_names(["STAT1"], 5, seed=7)
    predict_into(path, Predictor(checkpoint, attention="causal"), request, checkpoint_controls(checkpoint))
    record = read_record(ad.read_h5ad(path).uns)
    assert (record["scale"], record["target_sum"]) == ("lognorm", 10_000.0)
    details = record["details"]
    assert details["checkpoint_digest"] == checkpoint.digest
    assert (details["seed"], details["request_digest"]) == (7, request.digest())
    assert details["predictor"]["attention"] == "causal"
    assert details["predictor"]["set_size"] == 16
    assert details["output"]["include_controls"] is True


def test_the_same_command_writes_the_same_bytes(checkpoint, tmp_path):
    for name in ("a", "b"):
        request = request_names(["STAT1", "SRC"], 20)
        predict_into(tmp_path / f"{name}.h5ad", Predictor(checkpoint), request, checkpoint_controls(checkpoint))
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


def test_a_broken_run_leaves_nothing(checkpoint, tmp_path):
    predictor = Predictor(checkpoint)
    plan = predictor.plan(request_names(["STAT1"], 5), checkpoint_controls(checkpoint))

    def breaks():
        yield next(predictor.blocks(plan))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "p.h5ad", plan, breaks(), predictor.facts(plan.request))
    assert list(tmp_path.iterdir()) == []


def test_the_control_is_not_predicted_beside_the_measured(checkpoint, tmp_path):
    request = request_names(["STAT1", "non-targeting"], 5)
    pool = checkpoint_controls(checkpoint)
    with pytest.raises(ConfigError, match="control 'non-targeting' itself"):
        predict_into(tmp_path / "p.h5ad", Predictor(checkpoint), request, pool)
    done = predict_into(
        tmp_path / "p.h5ad", Predictor(checkpoint), request, pool, OutputOptions(include_controls=False)
    )
    assert (done.num_cells, done.num_controls) == (10, 0)
