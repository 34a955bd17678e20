"""Scoring in the background: the store, and jobs through the HTTP interface."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import h5py
import httpx
import pytest

from steval.errors import DataError, ServiceError
from steval.service.client import ServiceClient
from steval.service.jobs.store import JobStore
from steval.service.schemas import ScoreJob
from steval.service.score.uploads import resolve_path
from support.waiting import wait_until

JSON = {"content-type": "application/json"}


@pytest.fixture
def store(tmp_path):
    return JobStore(tmp_path / "jobs", ScoreJob, max_jobs=2, ttl=100)


def test_a_full_store_is_503(store):
    store.reserve()
    store.submit(store.reserve(), {})
    with pytest.raises(ServiceError, match="2 scoring jobs waiting") as caught:
        store.reserve()
    assert (caught.value.http_status, caught.value.retry_after) == (503, 30)


def test_jobs_run_oldest_first_and_are_held_by_one_worker(store):
    ids = [store.submit(store.reserve(), {}).id for _ in range(2)]
    assert [job.id for job in store.runnable()] == ids
    with store.claim(ids[0]) as ours, store.claim(ids[0]) as theirs:
        assert (ours, theirs) == (True, False)
    with store.claim(ids[0]) as again:
        assert again


def test_the_lock_of_a_killed_worker_is_free(store):
    job = store.submit(store.reserve(), {})
    code = (
        "import sys, time; from pathlib import Path; from steval.service.jobs.store import JobStore\n"
        "from steval.service.schemas import ScoreJob\n"
        f"store = JobStore(Path({str(store.directory)!r}), ScoreJob, max_jobs=2, ttl=1)\n"
        f"with store.claim({job.id!r}) as ours:\n    print(ours, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "True\n"
        with store.claim(job.id) as ours:
            assert not ours
        worker.kill()
        worker.wait()
    with store.claim(job.id) as ours:
        assert ours


def test_a_job_is_its_keys_own(store):
    job = store.submit(store.reserve("lab-a"), {})
    assert store.require(job.id, "lab-a") == job
    for other in ("lab-b", "", "lab"):
        with pytest.raises(ServiceError, match="no scoring job") as caught:
            store.require(job.id, other)
        assert caught.value.http_status == 404


def test_one_key_can_neither_fill_the_queue_nor_go_first(tmp_path):
    store = JobStore(tmp_path / "jobs", ScoreJob, max_jobs=6, ttl=100)
    greedy = [store.submit(store.reserve("greedy"), {}).id for _ in range(3)]
    with pytest.raises(ServiceError, match="3 scoring jobs of this key waiting"):
        store.reserve("greedy")
    polite = store.submit(store.reserve("polite"), {}).id
    assert [job.id for job in store.runnable()] == [greedy[0], polite, *greedy[1:]]
    for _ in range(2):
        store.reserve("third")
    with pytest.raises(ServiceError, match="6 scoring jobs waiting"):
        store.reserve("fourth")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"id": 1}', b"[]"])
def test_a_status_that_cannot_be_read_hurts_its_job_alone(store, content):
    whole, damaged = (store.submit(store.reserve(name), {}) for name in ("lab-a", "lab"))
    (store.path(damaged.id) / "job.json").write_bytes(content)
    assert [job.id for job in store.runnable()] == [whole.id]
    found = store.require(damaged.id, "lab")
    assert (found.state, found.error["code"]) == ("failed", "damaged_record")
    store.submit(store.reserve("lab-b"), {})
    assert store.clean() == 0
    os.utime(store.path(damaged.id) / "job.json", (1, 1))
    os.utime(store.path(damaged.id), (1, 1))
    assert store.clean() == 1
    assert whole.id in store.ids()


@pytest.mark.parametrize("job_id", ["..", "../jobs", "a" * 31, "A" * 32, "0" * 31 + "/", "0" * 32 + "\0"])
def test_ids_are_ours_alone(store, job_id):
    with pytest.raises(ServiceError, match="no scoring job"):
        store.path(job_id)


def test_what_has_expired_is_cleaned(store):
    done = store.finish(store.submit(store.reserve(), {}), state="done")
    abandoned = store.reserve()
    assert store.clean() == 0
    store.write(done.model_copy(update={"expires": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}))
    old = time.time() - 10_000
    os.utime(store.path(abandoned), (old, old))
    assert store.clean() == 2
    assert store.ids() == []


def test_paths_stay_inside_the_data_directories(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "outside.h5ad"
    (data / "sub").mkdir(parents=True)
    for path in (data / "a.h5ad", data / "sub" / "b.h5ad", outside, tmp_path / "data-other.h5ad"):
        path.touch()
    (data / "link.h5ad").symlink_to(outside)
    (data / "dir.h5ad").mkdir()
    for given in ("a.h5ad", "sub/b.h5ad", "sub/../a.h5ad", "gone/../a.h5ad", str(data / "a.h5ad")):
        assert resolve_path(given, [data], "predictions").is_relative_to(data)
    for given in (
        *("../outside.h5ad", str(outside), "link.h5ad", "dir.h5ad", "gone.h5ad", "a.h5ad\0", "", ".", "/etc/passwd"),
        *(
            "../data/a.h5ad",
            "../../../../../../../etc/../tmp/a.h5ad",
            "sub/../../data/a.h5ad",
            "sub/" * 2000 + "a.h5ad",
        ),
        *("../data-other.h5ad", "x" * 5000 + ".h5ad", "~/x.h5ad", "file:///a.h5ad"),
    ):
        with pytest.raises(ServiceError) as caught:
            resolve_path(given, [data], "predictions")
        assert (caught.value.http_status, caught.value.code) == (422, "no_such_data")


@pytest.fixture(scope="module")
def client(service_url):
    with ServiceClient(service_url) as made:
        yield made


@pytest.fixture(scope="module")
def predictions(client, tmp_path_factory):
    path = tmp_path_factory.mktemp("predicted") / "preds.h5ad"
    names = [one["name"] for one in client.perturbations()["perturbations"]]
    return client.save_predictions(path, names, 30, seed=1)


@pytest.mark.slow
def test_an_upload_is_scored_and_removed(client, http, predictions):
    job_id = client.submit_score(predictions, profile="minimal", metrics_only=True)
    result = client.wait_for_score(job_id, timeout=120)
    assert {member["metric"] for member in result["members"]}
    job = client.score_job(job_id)
    assert {"score.json", "results.csv", "report.html"} <= set(job["files"])
    assert job["expires"] is not None
    table = http.get(f"/score/{job_id}/files/results.csv").text.splitlines()
    assert len(table) == 1 + 5
    assert "perturbation" in table[0].split(",")
    report = http.get(f"/score/{job_id}/files/report.html")
    assert "sandbox" in report.headers["content-security-policy"]
    for name in ("..%2fjob.json", "request.json", "log.txt", "nothing"):
        assert http.get(f"/score/{job_id}/files/{name}").status_code == 404
    client.remove_score(job_id)
    assert http.get(f"/score/{job_id}").status_code == 404


@pytest.mark.slow
def test_a_file_on_the_server_with_a_wrong_column_fails_with_clear_words(client):
    job_id = client.submit_score("cells.h5ad", "cells.h5ad", on_server=True, perturbation_column="drug")
    with pytest.raises(DataError, match="drug"):
        client.wait_for_score(job_id, timeout=120)
    error = client.score_job(job_id)["error"]
    assert "Traceback" not in json.dumps(error)


@pytest.mark.slow
def test_a_bomb_that_is_uploaded_fails_its_job_alone(client, http, tmp_path):
    path = tmp_path / "bomb.h5ad"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("X", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")
    job_id = client.submit_score(path)
    with pytest.raises(DataError, match="1,000,000 cells"):
        client.wait_for_score(job_id, timeout=60)
    assert http.get("/readyz").status_code == 200


def test_a_waiting_job_is_cancelled(client, http):
    jobs = [client.submit_score("cells.h5ad", on_server=True) for _ in range(2)]
    for job_id in jobs:
        client.remove_score(job_id)
    deadline = time.monotonic() + 30
    for job_id in jobs:
        assert http.get(f"/score/{job_id}/files/score.json").status_code == 409
    while {client.score_job(job_id)["state"] for job_id in jobs} != {"cancelled"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert http.get(f"/score/{jobs[0]}/result").status_code == 409


def upload(http: httpx.Client, **options) -> httpx.Response:
    return http.post("/score", **options)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        pytest.param({"files": {"predictions": b"hello"}}, 422, id="not HDF5"),
        pytest.param({"files": {"predictions": b"\x80\x04\x95\x0b\x00."}}, 422, id="a pickle"),
        pytest.param({"files": {"real": b"hello"}}, 422, id="no predictions"),
        pytest.param({"files": {"other": b"hello"}}, 422, id="another name"),
        pytest.param({"files": {"predictions": b"x"}, "data": {"profile": "best"}}, 422, id="unknown profile"),
        pytest.param({"files": {"predictions": b"x"}, "data": {"seed": "abc"}}, 400, id="text for a number"),
        pytest.param({"files": {"predictions": b"x"}, "data": {"sed": "1"}}, 400, id="unknown field"),
        pytest.param({"content": b"{", "headers": JSON}, 400, id="not JSON"),
        pytest.param({"content": b"{}", "headers": JSON}, 422, id="nothing named"),
        pytest.param({"content": b'{"predictions": "../tiny.h5ad"}', "headers": JSON}, 422, id="a path that climbs"),
        pytest.param({"content": b'{"predictions": "/etc/passwd"}', "headers": JSON}, 422, id="a path elsewhere"),
        pytest.param({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, id="no boundary"),
        pytest.param(
            {"content": b"--x\r\nrubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            id="bad form",
        ),
        pytest.param({"content": b"x", "headers": {"content-type": "application/x-pickle"}}, 415, id="pickle type"),
        pytest.param({"files": {"predictions": b"x" * (21 * 2**20)}}, 413, id="too large"),
    ],
)
def test_bad_submissions_are_refused_and_leave_nothing(http, service_dir, options, status):
    before = set((service_dir / "jobs").iterdir())
    response = upload(http, **options)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"]
    assert set((service_dir / "jobs").iterdir()) <= before


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 503)])
def test_a_disk_that_takes_no_more_is_a_sentence_without_our_paths(http, service_dir, monkeypatch, number, status):
    def full(*_):
        raise OSError(number, os.strerror(number), str(service_dir))

    before = set((service_dir / "jobs").iterdir())
    content = (service_dir / "data" / "cells.h5ad").read_bytes()
    for place in ("steval.service.score.uploads.shutil.copyfileobj", "steval.data.files.os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            response = upload(http, files={"predictions": content})
        assert response.status_code == status, response.text
        assert "nothing was kept" in response.json()["error"]["message"]
        assert str(service_dir) not in response.text
        assert set((service_dir / "jobs").iterdir()) <= before


def test_the_names_of_uploads_are_not_used(http, service_dir):
    content = (service_dir / "data" / "cells.h5ad").read_bytes()
    response = upload(http, files={"predictions": ("../../evil.h5ad", content)})
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    assert response.headers["location"] == f"/score/{job_id}"
    assert not list(service_dir.rglob("evil*"))
    http.delete(f"/score/{job_id}")


UPLOAD = (
    b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\ncontent-length: 100000\r\n\r\n"
    b'--x\r\ncontent-disposition: form-data; name="predictions"; filename="p.h5ad"\r\n\r\n\x89HDF\r\n\x1a\n'
)
"""An upload that stops after its first bytes."""


@pytest.mark.slow
def test_an_upload_that_stops_is_408_and_one_whose_client_leaves_is_forgotten(http, service_url, service_dir):
    host, port = service_url.removeprefix("http://").split(":")
    before = set((service_dir / "jobs").iterdir())
    with socket.create_connection((host, int(port)), timeout=30) as left:
        left.sendall(UPLOAD)
        time.sleep(0.3)
    with socket.create_connection((host, int(port)), timeout=30) as stopped:
        stopped.sendall(UPLOAD)
        assert b" 408 " in stopped.recv(4096).split(b"\r\n")[0]
    wait_until(lambda: set((service_dir / "jobs").iterdir()) <= before)
    assert http.get("/readyz").status_code == 200


def test_unknown_jobs_are_404(http):
    for job_id in ("0" * 32, "x", "0" * 31 + "%2f"):
        assert http.get(f"/score/{job_id}").status_code == 404
        assert http.delete(f"/score/{job_id}").status_code == 404
