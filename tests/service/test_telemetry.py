"""Metrics over several workers: what a killed worker left does not count as alive."""

import os
import subprocess
import sys

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
