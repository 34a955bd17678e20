"""`steval serve` and a bento as real processes: start, refusals, signals, killed workers, keys."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.checkpoints.manifest import WarmupRecord
from steval.checkpoints.store import load_checkpoint
from steval.cli.app import app
from steval.errors import ServiceError, StevalError
from steval.service.client import ServiceClient
from steval.service.http.keys import add_key
from steval.service.received import whole_table
from support.service_models import free_port, served_process, wait_until_ready
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
REQUEST = {"perturbations": ["STAT1"], "cells": 20, "seed": 3}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No settings of the service in this process; a command that would begin to serve fails instead of replacing pytest."""
    for name in [name for name in os.environ if name.startswith("STEVAL_")]:
        monkeypatch.delenv(name)

    def refuse(*_):
        raise AssertionError("it would have served")

    monkeypatch.setattr(os, "execve", refuse)


def children(pid: int) -> list[int]:
    """The worker processes of a supervisor; those that any thread of a process started."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(text) for one in lists for text in one.split()]


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    try:
        return [pid, *(found for child in children(pid) for found in descendants(child))]
    except FileNotFoundError:
        return []


def runs_a_job(pid: int) -> bool:
    try:
        return b"steval.service.score.job_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def refusal(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_checkpoints_that_cannot_be_read_are_exit_3(tmp_path, tiny_checkpoint):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(tiny_checkpoint.read_bytes()[:-100])
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    for path in (tmp_path / "gone.safetensors", truncated, text):
        code, output = refusal(str(path))
        assert code == 3
        assert path.name in output


def test_bad_options_are_exit_2(tmp_path, tiny_checkpoint):
    checkpoint = str(tiny_checkpoint)
    assert refusal()[0] == 2
    for arguments, words in (
        ([checkpoint, "--host", "0.0.0.0"], "--no-auth"),
        ([checkpoint, "--host", "lab-server"], "IP address"),
        ([checkpoint, "--api-key-file", str(tmp_path / "gone")], "no such file"),
        ([checkpoint, "--data-dir", str(tmp_path / "gone")], "no such directory"),
        ([checkpoint, "--dtype", "float8"], "dtype"),
        (["--new-key", "lab"], "--api-key-file"),
    ):
        code, output = refusal(*arguments)
        assert code == 2, output
        assert words in output


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_port_in_use_is_one_sentence(tiny_checkpoint, host):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        code, output = refusal(str(tiny_checkpoint), "--host", host, "--no-auth", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "another program listens there" in output
    assert len(output.splitlines()) == 1


def test_an_address_of_another_machine_is_one_sentence(tiny_checkpoint):
    code, output = refusal(str(tiny_checkpoint), "--host", "203.0.113.7", "--no-auth")
    assert (code, len(output.splitlines())) == (2, 1)
    assert "no such address" in output


def test_a_new_key_is_shown_once_and_stored_hashed(tmp_path):
    path = tmp_path / "keys.txt"
    result = CliRunner().invoke(app, ["serve", "--new-key", "lab", "--api-key-file", str(path)])
    key = result.stdout.strip()
    assert result.exit_code == 0
    assert key.startswith("stv_")
    assert key not in path.read_text()


def test_options_win_over_variables_and_both_reach_the_workers(tiny_checkpoint, monkeypatch):
    given = {}
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: given.update(environment, command=arguments))
    monkeypatch.setenv("STEVAL_CHECKPOINT", "other.safetensors")
    monkeypatch.setenv("STEVAL_MAX_CELLS", "7")
    port = str(free_port())
    result = CliRunner().invoke(app, ["serve", str(tiny_checkpoint), "--workers", "2", "--port", port])
    assert result.exit_code == 0, result.output
    variables = {name: value for name, value in given.items() if name.startswith("STEVAL_")}
    expected = {"STEVAL_CHECKPOINT": str(tiny_checkpoint), "STEVAL_MAX_CELLS": "7", "STEVAL_WORKERS": "2"}
    assert variables == expected
    assert port in given["command"]


@pytest.mark.parametrize("chosen", [None, "8"])
def test_workers_use_their_memory_again_unless_the_caller_says_otherwise(tiny_checkpoint, monkeypatch, chosen):
    given = {}
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: given.update(environment))
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if chosen:
        monkeypatch.setenv("MALLOC_ARENA_MAX", chosen)
    assert CliRunner().invoke(app, ["serve", str(tiny_checkpoint), "--port", str(free_port())]).exit_code == 0
    assert given["MALLOC_ARENA_MAX"] == (chosen or "2")
    assert given["MALLOC_MMAP_THRESHOLD_"] == "33554432"


@pytest.mark.slow
def test_a_served_checkpoint_answers_and_ends_well(tiny_checkpoint):
    with served_process(str(tiny_checkpoint)) as (url, process):
        wait_until_ready(url)
        assert httpx.post(url + "/predict", json=REQUEST).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@pytest.mark.slow
@pytest.mark.parametrize("to", ["supervisor", "everyone"])
def test_sigterm_puts_a_running_job_back_and_the_next_service_runs_it(tiny_checkpoint, tmp_path, service_dir, to):
    """A terminal signals the whole group of processes; a supervisor ends its children. Neither is the job's failure."""
    arguments = ("--job-dir", str(tmp_path / "jobs"), "--data-dir", str(service_dir / "data"))
    with served_process(str(tiny_checkpoint), *arguments) as (url, process):
        wait_until_ready(url)
        with ServiceClient(url) as client:
            job_id = client.submit_score("cells.h5ad", "cells.h5ad", on_server=True, profile="minimal")
            wait_until(lambda: client.score_job(job_id)["state"] == "running")
        for pid in [process.pid] if to == "supervisor" else descendants(process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(120) == 0
    record = json.loads((tmp_path / "jobs" / job_id / "job.json").read_text())
    assert (record["state"], record["started"]) == ("queued", None)
    with served_process(str(tiny_checkpoint), *arguments) as (url, _):
        wait_until_ready(url)
        with ServiceClient(url) as client:
            assert client.wait_for_score(job_id, timeout=120)["members"]


@pytest.mark.slow
def test_two_services_of_one_user_count_apart_and_a_killed_worker_takes_its_job_along(
    tiny_checkpoint, tmp_path, service_dir
):
    arguments = ("--job-dir", str(tmp_path / "jobs"), "--data-dir", str(service_dir / "data"))
    with served_process(str(tiny_checkpoint), *arguments) as (url, process):
        wait_until_ready(url)
        assert httpx.post(url + "/predict", json=REQUEST).status_code == 200
        with served_process(str(tiny_checkpoint)) as (other, _):
            wait_until_ready(other)
            assert httpx.get(other + "/metrics").text.count('route="/predict"') == 0
            assert "steval_predicted_cells_total 20.0" in httpx.get(url + "/metrics").text
        with ServiceClient(url) as client:
            job_id = client.submit_score("cells.h5ad", "cells.h5ad", on_server=True, profile="minimal")
            jobs = wait_until(lambda: [pid for pid in descendants(process.pid) if runs_a_job(pid)])
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(runs_a_job, jobs)), 60)  # none outlives its worker
            wait_until_ready(url)
            assert client.wait_for_score(job_id, timeout=120)["members"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_scoring_job_is_run_again(tiny_checkpoint, tmp_path, service_dir):
    jobs, data = str(tmp_path / "jobs"), str(service_dir / "data")
    with served_process(str(tiny_checkpoint), "--job-dir", jobs, "--data-dir", data) as (url, process):
        wait_until_ready(url)
        with ServiceClient(url) as client:
            job_id = client.submit_score(
                "cells.h5ad", "cells.h5ad", on_server=True, profile="minimal", metrics_only=True
            )
            wait_until(lambda: client.score_job(job_id)["state"] == "running")
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until_ready(url)
        assert children(process.pid) != [worker]
        with ServiceClient(url) as client:
            assert client.predict_means(["STAT1"], 20).means.shape == (1, 120)
            assert client.wait_for_score(job_id, timeout=200)["members"]


@pytest.mark.slow
def test_a_job_survives_kills_at_any_moment(tiny_checkpoint, tmp_path, service_dir):
    """In turn the worker alone, which the supervisor replaces, and everything, which is started again: one result.

    STEVAL_KILLS says how many; 10 were run by hand.
    """
    arguments = ("--job-dir", str(tmp_path / "jobs"), "--data-dir", str(service_dir / "data"))
    results = []
    moments = np.random.default_rng(5).uniform(0.0, 1.0, int(os.environ.get("STEVAL_KILLS", "2")))
    job_id, whole = "", 0.0
    for number, moment in enumerate([None, *moments]):
        with served_process(str(tiny_checkpoint), *arguments) as (url, process):
            wait_until_ready(url)
            with ServiceClient(url) as client:
                job_id = client.submit_score("cells.h5ad", "cells.h5ad", on_server=True, profile="minimal", seed=1)
                submitted = time.monotonic()
                if moment is not None:
                    time.sleep(moment * whole)
                    everything = descendants(process.pid)
                    for pid in children(process.pid) if number % 2 else everything:
                        os.kill(pid, signal.SIGKILL)
                if moment is None or number % 2:
                    wait_until_ready(url)
                    results.append(client.wait_for_score(job_id, timeout=200))
                    whole = whole or time.monotonic() - submitted
                    client.remove_score(job_id)
        if moment is not None and not number % 2:
            assert not [pid for pid in everything if runs_a_job(pid)]
            with served_process(str(tiny_checkpoint), *arguments) as (url, _), ServiceClient(url) as client:
                wait_until_ready(url)
                results.append(client.wait_for_score(job_id, timeout=200))
                client.remove_score(job_id)
    assert len(results) == 1 + len(moments)
    assert all(result["members"] == results[0]["members"] for result in results)
    assert list((tmp_path / "jobs").iterdir()) == []


@pytest.mark.slow
def test_a_polite_key_is_served_beside_a_greedy_one(tiny_checkpoint, tmp_path):
    keys = tmp_path / "keys.txt"
    greedy, polite = add_key(keys, "greedy"), add_key(keys, "polite")
    large = {"perturbations": ["STAT1", "SRC", "TET1", "MED12"], "cells": 500}
    stop = threading.Event()
    finished: list[int] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": greedy}) as client:
            while not stop.is_set():
                finished.append(client.post("/predict", json=large).status_code)

    limits = {"STEVAL_MAX_QUEUED_CELLS": "8000", "STEVAL_QUEUE_TIMEOUT": "2", "STEVAL_MAX_CACHE_BYTES": "0"}
    with served_process(str(tiny_checkpoint), "--api-key-file", str(keys), **limits) as (url, _):
        wait_until_ready(url)
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        headers = {"x-api-key": polite}
        answers = []
        while len(answers) < 12 or finished.count(200) < 12:
            answers.append(httpx.post(url + "/predict", json=REQUEST, headers=headers, timeout=60).status_code)
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}
    assert set(finished) <= {200, 503}


@pytest.mark.slow
def test_a_worker_killed_under_load_gives_whole_answers_or_errors_and_is_replaced(tiny_checkpoint):
    answers: list[tuple[float, np.ndarray]] = []
    errors: list[tuple[float, StevalError]] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with ServiceClient(url, patience=60) as client:
            while not stop.is_set():
                try:
                    cells = client.predict_cells(["STAT1", "TET1"], 300, seed=3).cells
                except StevalError as error:
                    errors.append((time.monotonic(), error))
                    time.sleep(0.05)
                else:
                    answers.append((time.monotonic(), cells))

    with served_process(str(tiny_checkpoint)) as (url, process):
        wait_until_ready(url)
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) >= len(threads))
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: errors and answers[-1][0] > errors[-1][0])
        stop.set()
        for thread in threads:
            thread.join()
        assert children(process.pid) != [worker]
        wait_until(lambda: "steval_queued_cells 0.0" in httpx.get(url + "/metrics").text)
    assert {type(error) for _, error in errors} == {ServiceError}
    assert {error.code for _, error in errors} <= {"unreachable", "cut_off", "not_ready"}
    assert min(at for at, _ in answers) < killed < max(at for at, _ in answers)
    for _, cells in answers:
        np.testing.assert_allclose(cells, answers[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_keys_over_http(tiny_checkpoint, tmp_path):
    keys = tmp_path / "keys.txt"
    key = add_key(keys, "lab")
    with served_process(str(tiny_checkpoint), "--api-key-file", str(keys)) as (url, process):
        wait_until_ready(url)
        assert httpx.get(url + "/model").status_code == 401
        assert httpx.get(url + "/model").headers["www-authenticate"].startswith("Bearer")
        assert httpx.get(url + "/model", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url + "/").status_code == 200
        with ServiceClient(url, key) as client:
            assert client.model()["num_genes"] == 120
        predict = ["predict", "--url", url, "-p", "SRC", "--cells", "3", "-o", str(tmp_path / "p.h5ad")]
        wrong = CliRunner().invoke(app, [*predict, "--api-key", "wrong"])
        assert (wrong.exit_code, len(wrong.output.splitlines())) == (2, 1)
        assert not (tmp_path / "p.h5ad").exists()
        assert CliRunner().invoke(app, predict, env={"STEVAL_API_KEY": key}).exit_code == 0
        assert (tmp_path / "p.h5ad").exists()
    assert key not in "".join(process.log)
    assert any('"key": "lab"' in line for line in process.log)


@pytest.mark.slow
def test_a_checkpoint_that_this_machine_does_not_reproduce_is_never_ready(service_cells, tmp_path):
    from support.service_models import write_checkpoint

    record = WarmupRecord(perturbation="STAT1", num_cells=8, seed=0, mean=(1000.0, 2.0, 3.0))
    path = write_checkpoint(tmp_path / "other.safetensors", service_cells, warmup=record)
    assert load_checkpoint(path).manifest.warmup == record
    with served_process(str(path)) as (url, _):
        deadline = time.monotonic() + 120
        text = ""
        while "warm-up" not in text and time.monotonic() < deadline:
            try:
                response = httpx.get(url + "/readyz")
                assert response.status_code == 503
                text = response.text
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        assert "differs from the one recorded" in text
        answer = httpx.post(url + "/predict", json=REQUEST)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(url + "/livez").status_code == 200


@pytest.mark.slow
def test_a_bento_is_built_and_answers_the_same(tiny_checkpoint, tmp_path, http):
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "-o", "tag"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    home = {"BENTOML_HOME": str(tmp_path), "STEVAL_CHECKPOINT": str(tiny_checkpoint)}
    (source,) = (tmp_path / "bentos" / "steval").glob("*/src")
    assert {path.name for path in source.iterdir()} <= {
        *("steval", "deploy", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "bentofile.yaml")
    }
    bento = ("-m", "bentoml", "serve", "steval:latest", "--host", "127.0.0.1")
    with served_process(command=bento, **home) as (url, _):
        wait_until_ready(url)
        served = httpx.post(url + "/predict", json=REQUEST).json()
    here = http.post("/predict", json=REQUEST).json()
    assert served["predictions"] == here["predictions"]


@pytest.mark.slow
def test_bentoml_serve_without_a_checkpoint_says_how_to_give_one():
    names = {name: value for name, value in os.environ.items() if not name.startswith("STEVAL_")}
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "steval.service.app:StevalService", "--port", str(free_port())],
        env={**names, "BENTOML_DO_NOT_TRACK": "True"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "STEVAL_CHECKPOINT" in done.stdout + done.stderr


@pytest.mark.slow
def test_overload_is_refused_with_retry_after_and_loses_nothing(tiny_checkpoint):
    limits = {"STEVAL_MAX_QUEUED_CELLS": "600", "STEVAL_MAX_REQUESTS": "12"}
    body = {"perturbations": ["STAT1"], "cells": 200, "output": "cells"}
    answers: list[httpx.Response] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(6):
                answers.append(
                    client.post("/predict", json=body, headers={"accept": "application/vnd.apache.arrow.stream"})
                )

    with served_process(str(tiny_checkpoint), **limits) as (url, _):
        wait_until_ready(url)
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert httpx.post(url + "/predict", json=REQUEST).status_code == 200
    assert len(answers) == 24 * 6
    statuses = {answer.status_code for answer in answers}
    assert 200 in statuses
    assert statuses & {429, 503}
    assert statuses <= {200, 429, 503}
    for answer in answers:
        if answer.status_code == 200:
            assert len(whole_table(answer.content)) == 200
        else:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] in ("busy", "too_many_requests")


@pytest.mark.slow
def test_an_allowed_origin_may_call_from_a_browser_and_others_may_not(tiny_checkpoint, service_dir):
    controls = str(service_dir / "data" / "cells.h5ad")
    arguments = ("--cors-origin", "https://lab.example", "--controls", controls)
    with served_process(str(tiny_checkpoint), *arguments) as (url, _):
        wait_until_ready(url)
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        allowed = httpx.options(url + "/predict", headers={"origin": "https://lab.example", **asked})
        assert allowed.headers["access-control-allow-origin"] == "https://lab.example"
        answer = httpx.post(url + "/predict", json=REQUEST, headers={"origin": "https://lab.example"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://lab.example"
        assert answer.json()["controls"][0]["num_cells"] == 100
        other = httpx.options(url + "/predict", headers={"origin": "https://evil.example", **asked})
        assert "access-control-allow-origin" not in other.headers
        assert httpx.post(url + "/predict", json=REQUEST, headers={"origin": "https://evil.example"}).status_code == 403
