"""Predictions in the background: what they give, who sees them, and what ends them; the queue is that of scoring jobs."""

import json
import time

import anndata as ad
import httpx
import numpy as np
import pytest

from steval.checkpoints.store import load_checkpoint
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.requests import request_names
from steval.service.client import ServiceClient
from steval.service.http.access import NOBODY
from steval.service.jobs.files import PROGRESS, REQUEST, TEMPORARY
from steval.service.jobs.store import ENDED, JobStore
from steval.service.predict import background, job_process
from steval.service.received import whole_table
from steval.service.schemas import PredictionJob, PredictionsBody
from support.service_models import NAMES


def wait(http: httpx.Client, job_id: str, states=("done", "failed", "cancelled")) -> dict:
    deadline = time.monotonic() + 120
    while (job := http.get(f"/predictions/{job_id}").json())["state"] not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def test_a_whole_screen_is_the_file_of_steval_predict(http, tiny_checkpoint, tmp_path):
    with ServiceClient(str(http.base_url)) as client:
        job_id = client.submit_prediction(cells=600, seed=3)  # more than one request may have
        path = client.save_prediction_job(job_id, tmp_path / "served.h5ad")
        job = client.prediction_job(job_id)
    assert (job["state"], job["cells"], job["model"], job["files"]) == ("done", 3000, "tiny", ["predictions.h5ad"])
    checkpoint = load_checkpoint(tiny_checkpoint)
    expected_path = tmp_path / "expected.h5ad"
    pool = checkpoint_controls(checkpoint)
    predict_into(expected_path, Predictor(checkpoint, device="cpu"), request_names(NAMES, 600, seed=3), pool)
    served, expected = ad.read_h5ad(path), ad.read_h5ad(expected_path)
    assert served.obs.equals(expected.obs)
    assert abs(served.X - expected.X).max() < 1e-4
    assert job["cells_done"] == 3000
    assert job in http.get("/predictions").json()["jobs"]
    assert http.delete(f"/predictions/{job_id}").status_code == 204
    assert http.get(f"/predictions/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("state", "said", "cells_done"),
    [("queued", 0, 0), ("running", 40, 40), ("done", 40, 90), ("failed", 40, 0), ("cancelled", 40, 0)],
)
def test_the_list_and_a_job_alone_say_the_same_progress(tmp_path, state, said, cells_done):
    store = JobStore(tmp_path / "jobs", PredictionJob, max_jobs=8, ttl=60.0, what="prediction")
    job = store.submit(store.reserve(), {}, cells=90)
    temporary = store.path(job.id) / TEMPORARY
    temporary.mkdir()
    (temporary / PROGRESS).write_text(json.dumps({"cells": said}))
    job = job.model_copy(update={"state": state})
    store.write(job)
    if state in ENDED:
        job = store.finish(job)
    assert background._with_progress(store, job).cells_done == cells_done
    assert [one.cells_done for one in background._listed(store, NOBODY)] == [cells_done]


@pytest.fixture
def directory(tmp_path, tiny_checkpoint):
    """A job's directory as its process finds it; the body is to be put in."""

    def make(**body) -> object:
        whole = PredictionsBody(**body).for_all(NAMES)
        request = {
            "body": whole.as_dict(), "checkpoint": str(tiny_checkpoint), "controls": None, "device": "cpu", "dtype": "float32",
            "batch_cells": 64, "threads": 1, "max_bytes": 2**30,
        }  # fmt: skip
        (tmp_path / TEMPORARY).mkdir()
        (tmp_path / REQUEST).write_text(json.dumps(request))
        return tmp_path, request

    return make


@pytest.mark.parametrize("output", ["cells", "mean"])
def test_an_arrow_job_holds_what_the_request_answers(http, directory, output):
    path, request = directory(perturbations=["STAT1", "SRC"], cells=40, seed=3, form="arrow", output=output)
    job_process._predict(path, request)
    written = whole_table((path / TEMPORARY / "score" / "predictions.arrow").read_bytes())
    body = {"perturbations": ["STAT1", "SRC"], "cells": 40, "seed": 3, "output": output}
    answer = http.post("/predict", json=body, headers={"accept": "application/vnd.apache.arrow.stream"})
    asked = whole_table(answer.content)
    assert written.schema.equals(asked.schema, check_metadata=True)
    for name in written.schema.names[:-1]:
        assert written[name].to_pylist() == asked[name].to_pylist()
    values = [np.array(one["expression"].combine_chunks().flatten()) for one in (written, asked)]
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


def test_progress_is_written_while_it_runs(directory, monkeypatch):
    monkeypatch.setattr(job_process, "SECONDS", 0.0)
    path, request = directory(cells=100)
    seen = []
    counted = job_process._counted

    def watched(blocks, place):
        for block in counted(blocks, place):
            yield block
            progress = place / TEMPORARY / "progress.json"
            seen.append(json.loads(progress.read_text())["cells"] if progress.exists() else 0)

    monkeypatch.setattr(job_process, "_counted", watched)
    job_process._predict(path, request)
    assert seen == sorted(seen)
    assert seen[-1] > 200


def test_a_result_larger_than_is_allowed_is_an_error_in_words(directory, monkeypatch):
    import resource

    path, request = directory(cells=500)
    monkeypatch.setattr(job_process, "begin", lambda _: {**request, "max_bytes": 100_000})
    monkeypatch.setattr(job_process, "end_with_worker", lambda: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert job_process.main([str(path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = json.loads((path / TEMPORARY / "error.json").read_text())
    assert error["code"] == "cannot_write"
    assert str(path) not in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"perturbations": ["NOPE"]}, 404, "unknown_perturbation"),
        ({"perturbations": ["STAT1"], "cell_type": "K562"}, 422, "breaks_a_rule"),
        ({"perturbations": ["STAT1", "STAT1"]}, 422, "breaks_a_rule"),
        ({"cells": 1_000_000}, 413, "too_many_cells"),
        ({"cells": "many"}, 400, "bad_request"),
        ({"form": "csv"}, 422, "breaks_a_rule"),
        ({"model": "nothing"}, 404, "unknown_model"),
    ],
)
def test_what_cannot_be_predicted_is_refused_when_it_is_submitted(http, body, status, code):
    answer = http.post("/predictions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["request_id"]


def test_a_job_can_be_cancelled_and_has_no_result_then(http):
    job_id = http.post("/predictions", json={"cells": 100_000}).json()["id"]
    early = http.get(f"/predictions/{job_id}/result")
    assert early.status_code == 409
    assert int(early.headers["retry-after"]) >= 1
    assert http.delete(f"/predictions/{job_id}").status_code == 202
    assert wait(http, job_id)["state"] == "cancelled"
    late = http.get(f"/predictions/{job_id}/result")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "job_cancelled")
    assert "retry-after" not in late.headers


def test_a_checkpoint_that_broke_meanwhile_fails_the_job_in_words(directory, tiny_checkpoint, tmp_path, monkeypatch):
    path, request = directory(perturbations=["STAT1"])
    broken = tmp_path / "secret" / "broken.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(tiny_checkpoint.read_bytes()[:5000])
    monkeypatch.setattr(job_process, "begin", lambda _: {**request, "checkpoint": str(broken)})
    monkeypatch.setattr(job_process, "end_with_worker", lambda: None)
    monkeypatch.setattr(job_process, "_limit_files", lambda _: None)
    assert job_process.main([str(path)]) == 1
    error = json.loads((path / TEMPORARY / "error.json").read_text())
    assert error["code"] == "bad_checkpoint"
    assert "broken.safetensors" in error["message"]
    assert "secret" not in error["message"]
