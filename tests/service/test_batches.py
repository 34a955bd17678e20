"""`/batches`: the leaderboards and reports that lie in the service's data directories, and nothing else."""

import shutil

import pytest

from support.service_batches import REPORT, write_batch


@pytest.fixture
def batch(service_dir, service_cells):
    directory = write_batch(service_dir / "data" / "night.batch")
    yield directory
    shutil.rmtree(directory)


def find(http, name: str = "night.batch") -> dict:
    (found,) = [one for one in http.get("/batches").json()["batches"] if one["name"] == name]
    return found


def test_a_batch_in_a_data_directory_is_listed_with_its_leaderboard(http, batch):
    answer = http.get(f"/batches/{find(http)['id']}").json()
    first, second = answer["rows"]
    assert (first["rank"], first["checkpoint"], first["overall"], first["overall_low"]) == (1, "a", 0.5, 0.4)
    assert (first["above_simple"], first["flags"], first["job"]) == (-1.25, "shift (warn)", "a__cells__all-1")
    assert (second["checkpoint"], second["rank"], second["overall"]) == ("=b", None, None)
    assert (second["error"], second["job"]) == ("no genes", None)


def test_the_report_of_a_scored_job_gets_no_origin(http, batch):
    answer = http.get(f"/batches/{find(http)['id']}/a__cells__all-1/report")
    assert answer.text == REPORT and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("sandbox")


@pytest.mark.parametrize("job", ["b", "nobody", "..", "%2e%2e", "a__cells__all-1%00"])
def test_other_jobs_have_no_report(http, batch, job):
    assert http.get(f"/batches/{find(http)['id']}/{job}/report").status_code == 404


def test_nothing_outside_is_shown(http, batch, service_dir, tmp_path):
    assert http.get(f"/batches/{'0' * 32}").status_code == 404
    outside = write_batch(tmp_path / "outside.batch")
    link = service_dir / "data" / "linked.batch"
    link.symlink_to(outside)
    try:
        assert "linked.batch" not in http.get("/batches").text and "outside" not in http.get("/batches").text
    finally:
        link.unlink()
    job = batch / "jobs" / "a__cells__all-1"
    shutil.rmtree(job)
    job.symlink_to(outside / "jobs" / "a__cells__all-1")
    assert http.get(f"/batches/{find(http)['id']}/a__cells__all-1/report").status_code == 404


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("checkpoint\nx\n", id="columns"),
        pytest.param("rank,checkpoint,data,request,state\none,a,b,c,scored\n", id="number"),
        pytest.param("rank,checkpoint,data,request,state\n1,a,b,c,scored\n\udcff", id="bytes"),
    ],
)
def test_a_leaderboard_that_is_none_is_said(http, batch, text):
    (batch / "leaderboard.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    answer = http.get(f"/batches/{find(http)['id']}")
    assert answer.status_code == 422 and "steval batch --collect" in answer.json()["error"]["message"]
