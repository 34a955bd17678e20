"""Traces of requests and jobs: in memory, and at a collector that speaks OTLP over HTTP."""

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from steval.errors import ConfigError
from steval.service.http.tracing import Tracing, is_wanted, require_exporter
from support.second_service import second_service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "lab=1"}
BODY = {"perturbations": ["STAT1"], "cells": 40}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(frozen=True)
class Seen:
    """A span, wherever it was collected."""

    name: str
    trace: str
    span: str
    parent: str
    began: int
    ended: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Traced:
    """A service whose spans are collected."""

    url: str
    spans: Callable[[], list[Seen]]

    def wait(self, trace: str, names: set[str]) -> list[Seen]:
        """The spans of a trace, once these are among them."""
        deadline = time.monotonic() + 60
        while True:
            found = [one for one in self.spans() if one.trace == trace]
            if names <= {one.name for one in found}:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)


def in_memory(span: ReadableSpan) -> Seen:
    parent = "" if span.parent is None else f"{span.parent.span_id:016x}"
    ids = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
    return Seen(span.name, *ids, parent, span.start_time, span.end_time, dict(span.attributes))


class Collector(ThreadingHTTPServer):
    """Takes what an exporter posts to `/v1/traces`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[Any] = []

    def spans(self) -> list[Seen]:
        return [
            Seen(
                span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                span.start_time_unix_nano, span.end_time_unix_nano,
                {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
            )
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    def service_names(self) -> set[str]:
        resources = [resource.resource for request in self.requests for resource in request.resource_spans]
        return {one.value.string_value for each in resources for one in each.attributes if one.key == "service.name"}


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        is_ours = self.path == "/v1/traces"
        if is_ours:
            self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if is_ours else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module", params=["memory", "otlp"])
def traced(request, service_url, tiny_checkpoint, service_dir):
    """A service of its own, started after the one that all tests share, which is not to be traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        if request.param == "memory":
            exporter = InMemorySpanExporter()
            patch.setattr(Tracing, "start", lambda tracing, _: tracing.collect(exporter))
            with serve(tiny_checkpoint, service_dir) as url:
                yield Traced(url, lambda: list(map(in_memory, exporter.get_finished_spans())))
            return
        pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
        with Collector() as collector:
            threading.Thread(target=collector.serve_forever, daemon=True).start()
            patch.setenv(ENDPOINT, f"http://127.0.0.1:{collector.server_port}")
            with serve(tiny_checkpoint, service_dir) as url:
                yield Traced(url, collector.spans)
            assert collector.service_names() == {"steval"}
            collector.shutdown()


def serve(checkpoint, directory):
    return second_service(checkpoint=str(checkpoint), data_dir=str(directory / "data"), threads="1", batch_cells="16")


def test_a_request_is_one_span_under_the_clients_with_what_it_waited_for_below(traced):
    answer = httpx.post(f"{traced.url}/predict", json=BODY, headers=GIVEN | {"x-request-id": "mine"}, timeout=60)
    assert answer.status_code == 200
    spans = traced.wait(TRACE, {"POST /predict"})
    (server,) = [one for one in spans if one.name == "POST /predict"]
    assert server.parent == PARENT
    expected = {
        "http.response.status_code": 200,
        "http.route": "/predict",
        "steval.request_id": "mine",
        "steval.cells": 40,
    }
    assert expected.items() <= server.facts.items()
    below = [one for one in spans if one.parent == server.span]
    assert len(below) == len(spans) - 1
    assert all(server.began <= one.began <= one.ended <= server.ended for one in below)
    passed = sorted((one for one in below if one.name == "network"), key=lambda one: one.began)
    assert [one.facts["steval.cells"] for one in passed] == [16, 16, 8]  # its sets; a batch has room for one
    waits = sorted((one for one in below if one.name == "queue"), key=lambda one: one.began)
    assert [one.ended for one in waits] == [one.began for one in passed]
    assert {one.name for one in below} == {"model", "admission", "planning", "queue", "network", "encoding"}
    (encoding,) = [one for one in below if one.name == "encoding"]
    assert encoding.began >= passed[-1].ended


def test_a_job_belongs_to_the_trace_of_its_submission_and_names_it(traced):
    trace = TRACE[::-1]
    given = {"traceparent": f"00-{trace}-{PARENT}-01"}
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        job = client.post("/predictions", json=BODY, headers=given).json()
        assert job["trace_id"] == trace
        spans = traced.wait(trace, {"prediction work"})
        ended = client.get(f"/predictions/{job['id']}").json()
        assert (ended["state"], ended["trace_id"]) == ("done", trace)
    by_name = {one.name: one for one in spans}
    server, queue, work = (by_name[name] for name in ("POST /predictions", "prediction queue", "prediction work"))
    assert (server.parent, queue.parent, work.parent) == (PARENT, server.span, server.span)
    assert server.facts["steval.job"] == queue.facts["steval.job"] == job["id"]
    assert work.facts["steval.state"] == "done"
    assert queue.began <= queue.ended == work.began < work.ended


def test_what_goes_wrong_and_what_was_not_asked_for_are_seen_as_such(traced):
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        client.get("/readyz")
        client.post("/predict", json=BODY | {"seed": 1}, headers={"traceparent": f"00-{'b' * 32}-{PARENT}-00"})
        refused = client.post(
            "/predict", json={"perturbations": ["NOPE"]}, headers={"traceparent": f"00-{'c' * 32}-{PARENT}-01"}
        )
        assert refused.status_code == 404
        (server,) = [one for one in traced.wait("c" * 32, {"POST /predict"}) if one.name == "POST /predict"]
    assert server.facts["error.type"] == "unknown_perturbation"
    assert server.facts["http.response.status_code"] == 404
    names = {one.name for one in traced.spans()}
    assert "GET /readyz" not in names  # health checks would bury the others
    assert not [one for one in traced.spans() if one.trace == "b" * 32]  # its client keeps no trace of it


def test_a_trace_goes_on_where_nobody_collects_it(http):
    jobs = [http.post("/predictions", json=BODY, headers=headers).json() for headers in (GIVEN, {})]
    for job in jobs:
        http.delete(f"/predictions/{job['id']}")
    assert [job["trace_id"] for job in jobs] == [TRACE, None]


def test_what_has_not_been_sent_is_sent_at_the_end():
    tracing, exporter = Tracing(), InMemorySpanExporter()
    tracing.collect(exporter)
    tracing.request("GET /models", {}).end()
    tracing.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /models"]


def test_traces_are_wanted_where_the_standard_variables_name_a_collector():
    assert not is_wanted({})
    assert is_wanted({ENDPOINT: "http://collector:4318"})
    assert is_wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"})
    for off in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
        assert not is_wanted({ENDPOINT: "http://collector:4318", **off})


def test_traces_that_cannot_be_sent_as_asked_are_refused_with_every_reason(monkeypatch):
    asked = {ENDPOINT: "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TRACES_EXPORTER": "zipkin"}
    with pytest.raises(ConfigError) as refused:
        require_exporter(asked)
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        "OTEL_TRACES_EXPORTER=zipkin",
    ]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"\[tracing\]"):
        require_exporter({ENDPOINT: "http://collector:4318"})
