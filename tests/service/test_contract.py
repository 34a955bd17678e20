"""The running service against its own OpenAPI document: generated requests, good and bad, with every check of schemathesis."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steval.service.routes import ROUTES

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 50
"""Generated requests for each operation in the fuzzing phase; the whole run takes about 15 seconds."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"),
]


def test_no_generated_request_breaks_the_service_or_the_document(service_url, tmp_path):
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(CONFIG),
        "run",
        f"{service_url}/openapi.json",
    ]
    options = [
        "--url",
        service_url,
        "--checks",
        "all",
        "--exclude-checks",
        "use_after_free",
        "--max-examples",
        str(EXAMPLES),
        "--no-color",
    ]
    repeatable = ["--seed", "1", "--generation-deterministic", "--no-shrink"]
    done = subprocess.run(
        [*command, *options, *repeatable],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counted, done.stdout[-2000:]
    generated, passed = map(int, counted.groups())
    assert generated == passed > 500
    # schemathesis leaves out the address that it has the description from
    documented = sum(len(route.operations) for route in ROUTES if route.documented and route.path != "/openapi.json")
    assert f"Tested: {documented}" in done.stdout
