"""Metrics over several workers: what a killed worker left does not count as alive; log lines and traces."""

import json
import logging
import os
import queue
import subprocess
import sys

import pytest

from steval.service.http.journal import ACCESS, JsonFormatter

WORKER = """
import os, sys
from steval.service.http.telemetry import exposition, service_metrics
metrics = service_metrics()
metrics.queued(int(sys.argv[1]))
metrics.batch(1, 16, 0.1)
print(exposition()[0].decode(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_gauges_of_a_killed_worker_are_forgotten_and_its_counters_kept(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    texts = [
        subprocess.run(
            [sys.executable, "-c", WORKER, cells], env=environment, capture_output=True, text=True, timeout=60
        ).stdout
        for cells in ("2400", "7")
    ]
    assert "steval_queued_cells 2400.0" in texts[0]
    assert "steval_queued_cells 7.0" in texts[1]
    assert "steval_predicted_cells_total 32.0" in texts[1]


@pytest.mark.parametrize(
    ("parent", "trace"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what.comes", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736", None),
        ("", None),
    ],
)
def test_log_lines_carry_the_trace_that_a_request_belongs_to(http, parent, trace):
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    kept = logging.Handler()
    kept.emit = records.put
    logger = logging.getLogger(ACCESS)
    logger.addHandler(kept)
    try:
        asked = http.get("/models", headers={"traceparent": parent}).headers["x-request-id"]
        while (
            record := records.get(timeout=120)
        ).request_id != asked:  # a line may be written after the answer was sent
            pass
    finally:
        logger.removeHandler(kept)
    assert record.trace_id == trace
    assert ("trace_id" in json.loads(JsonFormatter().format(record))) == (trace is not None)
