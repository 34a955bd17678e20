"""`deploy/grafana` and `deploy/prometheus`: every query is of metrics that the service has, and Prometheus answers it."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from steval.service.http.telemetry import ServiceMetrics
from steval.service.routes import ROUTES
from support.service_models import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "steval.json").read_text())
RULES = DEPLOY / "prometheus" / "alerts.yaml"
REQUIRED = "STEVAL_REQUIRE_PROMETHEUS" in os.environ
"""Set where the tests must not be skipped."""
needs_prometheus = pytest.mark.skipif(
    not REQUIRED and (shutil.which("prometheus") is None or shutil.which("promtool") is None),
    reason="Prometheus is not installed",
)
_SELECTOR = re.compile(r"(?P<name>\b(?:steval_[a-z_]+|up)\b)(?:\{(?P<labels>[^}]*)\})?")
_LABEL = re.compile(r'(?P<name>[a-z_]+)(?P<how>=~|!~|!=|=)"(?P<value>[^"]*)"')


def queries() -> list[str]:
    """Of the dashboard, with the job that it is opened with."""
    return [target["expr"].replace("$job", "steval") for panel in BOARD["panels"] for target in panel["targets"]]


def alerts() -> list[str]:
    return [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def exported() -> dict[str, set[str]]:
    """Names of the series that the service exports, with their labels."""
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    metrics.finished("GET", "/predict", 200, 0.1)
    metrics.batch(1, 1, 0.1)
    metrics.waiting("scoring", 0)
    return {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("query", [*queries(), *alerts()])
def test_every_query_is_of_series_and_labels_that_the_service_exports(query):
    known = exported() | {"up": set()}
    used = list(_SELECTOR.finditer(query))
    assert used
    for match in used:
        assert match["name"] in known
        for label in _LABEL.finditer(match["labels"] or ""):
            assert label["name"] in known[match["name"]] | {"job", "instance"}
            if label["name"] == "route":
                assert ROUTES.find(label["value"]) is not None
    grouped = {name.strip() for text in re.findall(r"by \(([^)]*)\)", query) for name in text.split(",")}
    assert grouped <= set().union(*(known[match["name"]] for match in used)) | {"job", "instance"}


def test_every_metric_of_the_service_is_on_the_dashboard():
    text = " ".join(queries())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    assert sorted(name for name in families if name not in text) == []


@needs_prometheus
def test_the_alerts_say_what_their_examples_say():
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts-test.yaml"], cwd=RULES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    named = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((RULES.parent / "alerts-test.yaml").read_text())["tests"]
    asked = [one for test in tests for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in asked if "exp_alerts" in one} >= named - {"StevalJobsFail"}
    assert {one["alertname"] for one in asked if "exp_alerts" not in one} >= named


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_answers_every_query_of_the_dashboard(service_url, http, tmp_path):
    config = yaml.safe_load((RULES.parent / "prometheus.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    del scrape["authorization"]
    scrape |= {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    scrape["static_configs"] = [{"targets": [service_url.removeprefix("http://")]}]
    config["rule_files"] = [str(RULES)]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={listen}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        missing = queries()
        while missing:
            assert time.monotonic() < deadline, (missing, (tmp_path / "log").read_text()[-2000:])
            seed = int(time.monotonic() * 1000)
            assert http.post("/predict", json={"perturbations": ["STAT1"], "cells": 8, "seed": seed}).status_code == 200
            time.sleep(0.5)
            missing = [query for query in missing if not answered(listen, query)]
        rules = httpx.get(f"http://{listen}/api/v1/rules").json()["data"]["groups"]
        assert len(rules[0]["rules"]) == len(alerts())
    finally:
        process.terminate()
        process.wait(30)


def answered(listen: str, query: str) -> bool:
    """Whether Prometheus has a number for a query."""
    try:
        answer = httpx.get(f"http://{listen}/api/v1/query", params={"query": query}, timeout=10)
    except httpx.TransportError:
        return False
    assert answer.json()["status"] == "success", (query, answer.text)
    values = [float(one["value"][1]) for one in answer.json()["data"]["result"]]
    return any(value == value for value in values)  # a share of nothing is NaN
