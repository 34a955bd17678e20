"""`steval load`: what it counts, and that its numbers are those of the service that answered."""

import json
import math
from xml.etree import ElementTree

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

from steval.cli.app import app
from steval.errors import ConfigError, ServiceError
from steval.service.client import Connection, ServiceClient
from steval.service.http.keys import add_key
from steval.service.load.measure import Answer, measure, summarise
from steval.service.load.plan import LoadPlan
from support.second_service import second_service
from support.service_models import served_app

QUICK = ("--concurrency", "1,3", "--seconds", "0.4", "--warmup", "0.1", "--cells", "16")


def run(*arguments: str, columns: int = 80):
    return CliRunner().invoke(app, ["load", *arguments], env={"COLUMNS": str(columns)})


def predicted_cells(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("steval_predicted_cells_total"))


def test_a_level_is_summed_up_by_what_occurred():
    good = [Answer(began=10.0 + 0.1 * number, seconds=0.001 * (number + 1)) for number in range(100)]
    level = summarise([*good, Answer(25.0, 5.0, "busy"), Answer(10.0, 0.001, "busy")], concurrency=7, cells=20)
    assert (level.p50_ms, level.p95_ms, level.p99_ms, level.max_ms) == pytest.approx((50, 95, 99, 100))
    assert (level.answers, level.errors) == (100, {"busy": 2})
    assert level.seconds == pytest.approx(
        20.0
    )  # to the end of the last one: an answer that is waited for takes its time
    assert (level.requests_per_second, level.cells_per_second) == pytest.approx((5.0, 100.0))
    nothing = summarise([], concurrency=1, cells=20)
    assert (nothing.answers, nothing.requests_per_second, nothing.p99_ms) == (0, 0.0, None)


def test_every_body_asks_for_what_was_not_computed_before():
    plan = LoadPlan(perturbations=("A", "B"), seed=2**32 - 1, cells=5, model="m", adapter="a")
    bodies = [plan.body(number) for number in range(3)]
    assert [(one["perturbations"], one["seed"]) for one in bodies] == [(["A"], 2**32 - 1), (["B"], 0), (["A"], 1)]
    assert bodies[0] | {"perturbations": [], "seed": 0} == {
        "perturbations": [], "seed": 0, "cells": 5, "output": "mean", "model": "m", "adapter": "a",
    }  # fmt: skip


@pytest.mark.parametrize("output", ["mean", "cells"])
def test_its_numbers_are_those_of_the_service(http, service_url, output, tmp_path):
    before = predicted_cells(http)
    done = run(service_url, *QUICK, "--output", output, "--json", "-o", str(tmp_path / "load.svg"))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    levels = said["levels"]
    assert [one["concurrency"] for one in levels] == [1, 3]
    assert all(one["answers"] > 0 and one["errors"] == {} for one in levels)
    counted = 16 * sum(one["answers"] for one in levels)
    # none from memory; warm-up and the trial were predicted too, and are not counted
    assert counted < predicted_cells(http) - before
    for one in levels:
        assert one["cells_per_second"] == pytest.approx(16 * one["requests_per_second"])
        assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"] <= one["max_ms"] <= 1000 * one["seconds"]
        assert one["answers"] == pytest.approx(one["requests_per_second"] * one["seconds"])
    assert said["service"]["checkpoint"] == http.get("/model").json()["checkpoint"]
    assert said["asked"]["perturbations"] == 5
    text = "".join(ElementTree.parse(tmp_path / "load.svg").getroot().itertext())
    assert "latency (ms)" in text


def test_the_table_fits_and_says_what_its_latencies_are(service_url):
    done = run(service_url, *QUICK, "--seed", "4", "-p", "STAT1")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "p99 ms" in done.stdout
    assert "seeds from 4" in done.stdout
    assert "closed loop" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-p", "NOPE"), 4, "unknown perturbation"),
        (("-p", "STAT1,NOPE"), 4, "NOPE"),
        (("--cells", "3000"), 4, "the limit is 2,000"),
        (("--concurrency", "1,x"), 2, "--concurrency"),
        (("--concurrency", "0"), 2, "--concurrency"),
        (("--concurrency", "5000"), 2, "at most 1024"),
        (("--seconds", "0"), 2, "seconds"),
        (("--model", "nobody"), 4, "nobody"),
        (("-o", "load.txt"), 2, "load.txt"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(service_url, arguments, code, message):
    done = run(service_url, *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


def test_a_service_that_is_not_there_is_said_so():
    done = run("http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "no answer from the service" in done.stderr


def test_a_quota_shows_as_errors_by_code_and_a_key_that_is_wrong_ends_it(tiny_checkpoint, tmp_path):
    path = tmp_path / "keys.txt"
    key = add_key(path, "lab")
    path.write_text(path.read_text().strip() + " cells=64/day\n")
    with second_service(checkpoint=str(tiny_checkpoint), threads="1", api_key_file=str(path)) as url:
        done = run(url, *QUICK, "--warmup", "0", "--api-key", key, "--json")
        assert done.exit_code == 0, done.output
        levels = json.loads(done.stdout)["levels"]
        assert levels[1]["answers"] == 0
        assert levels[1]["p50_ms"] is None
        assert set(levels[1]["errors"]) == {"quota_used"}
        assert run(url, *QUICK, "--api-key", "stv_wrong").exit_code == 2
        with ServiceClient(url, key) as service, pytest.raises(ServiceError, match="64 a day"):
            LoadPlan(seed=0, cells=40, perturbations=("STAT1",)).checked(service)


def test_a_client_that_is_asked_to_come_back_does_so():
    asked: list[float] = []

    async def answer(_):
        asked.append(1)
        busy = {"error": {"code": "busy", "message": "later"}}
        return JSONResponse(busy, status_code=503, headers={"retry-after": "1", "x-error-code": "busy"})

    plan = LoadPlan(concurrency=(2,), seconds=0.5, warmup=0.0, perturbations=("A",), seed=0)
    with served_app(Starlette(routes=[Route("/predict", answer, methods=["POST"])])) as url:
        (level,) = measure(Connection(url), plan)
    assert level.errors == {"busy": 2}
    assert len(asked) == 2


def test_an_address_that_is_none_is_named():
    with pytest.raises(ConfigError, match="not the address"):
        Connection("nonsense")
    assert math.isclose(Connection("http://127.0.0.1:9").options(3.0)["timeout"], 3.0)
