"""Answers that were given before: the same values, bounded bytes, tags, and nothing that tells one key of another."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from steval.service.http.telemetry import ServiceMetrics
from steval.service.predict.cache import AnswerCache

BODY = {"perturbations": ["STAT1", "SRC"], "cells": 20, "seed": 11}


@pytest.fixture
def counted():
    registry = CollectorRegistry()
    return registry, ServiceMetrics(registry)


def test_an_answer_is_kept_for_the_key_that_was_given_it_alone(counted):
    registry, metrics = counted
    cache = AnswerCache(1000, metrics)
    cache.put("ada", "tag", b"answer")
    assert cache.get("ada", "tag") == b"answer"
    assert cache.get("bob", "tag") is None
    assert cache.get("ada", "other") is None
    assert registry.get_sample_value("steval_cache_total", {"result": "hit"}) == 1
    assert registry.get_sample_value("steval_cache_total", {"result": "miss"}) == 2
    assert registry.get_sample_value("steval_cache_bytes") == 6


def test_bytes_are_bounded_and_the_key_that_holds_most_loses_its_oldest(counted):
    registry, metrics = counted
    cache = AnswerCache(800, metrics)
    cache.put("bob", "0", b"x" * 100)
    for number in range(20):
        cache.put("ada", str(number), b"x" * 100)
        cache.get("ada", "0")  # what is used stays
        assert registry.get_sample_value("steval_cache_bytes") <= 800
    assert cache.get("bob", "0") is not None
    assert cache.get("ada", "0") is not None
    assert cache.get("ada", "1") is None
    assert cache.get("ada", "19") is not None


def test_what_is_too_large_is_not_kept_and_no_bytes_keep_nothing(counted):
    _, metrics = counted
    cache = AnswerCache(800, metrics)
    cache.put("ada", "tag", b"x" * 101)
    assert cache.get("ada", "tag") is None
    none = AnswerCache(0, metrics)
    none.put("ada", "tag", b"x")
    assert none.get("ada", "tag") is None


def test_an_answer_put_twice_counts_once(counted):
    registry, metrics = counted
    cache = AnswerCache(800, metrics)
    for _ in range(3):
        cache.put("ada", "tag", b"x" * 50)
    assert registry.get_sample_value("steval_cache_bytes") == 50


def value(http: httpx.Client, name: str) -> float:
    return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))


def test_the_same_request_is_answered_from_memory_with_the_same_bytes(http):
    first = http.post("/predict", json=BODY)
    predicted = value(http, "steval_predicted_cells_total")
    again = http.post("/predict", json={**BODY, "model": "tiny"})
    packed = http.post("/predict", json=BODY, headers={"accept-encoding": "zstd"})
    assert first.content == again.content == packed.content
    assert first.headers["etag"] == again.headers["etag"] == packed.headers["etag"]
    assert value(http, "steval_predicted_cells_total") == predicted
    assert packed.headers["content-encoding"] == "zstd"


@pytest.mark.parametrize(
    "change",
    [{"seed": 12}, {"cells": 21}, {"perturbations": ["SRC", "STAT1"]}, {"decoding": "network"}, {"batch": None}],
)
def test_another_request_has_another_tag(http, change):
    tags = [http.post("/predict", json=body).headers["etag"] for body in (BODY, {**BODY, **change})]
    assert (tags[0] == tags[1]) == (change == {"batch": None})


def test_a_client_that_has_the_answer_gets_304_and_no_body(http):
    first = http.post("/predict", json=BODY)
    predicted = value(http, "steval_predicted_cells_total")
    for tags in (first.headers["etag"], f'"x", {first.headers["etag"]}', first.headers["etag"].removeprefix("W/")):
        again = http.post("/predict", json=BODY, headers={"if-none-match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert http.post("/predict", json={**BODY, "seed": 5}, headers={"if-none-match": tags}).status_code == 200
    assert http.post("/predict", json=BODY, headers={"if-none-match": "*"}).status_code == 200
    assert value(http, "steval_predicted_cells_total") == predicted + 40
    arrow = http.post("/predict", json=BODY, headers={"accept": "application/vnd.apache.arrow.stream"})
    assert arrow.headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("path", ["/model", "/models", "/perturbations?search=T", "/", "/page/app.js"])
def test_what_has_not_changed_is_304(http, path):
    first = http.get(path)
    again = http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == first.headers["cache-control"]
    assert http.get(path, headers={"if-none-match": '"other"'}).content == first.content
