"""A service under a mixture of attacks goes on answering others with the same numbers, grows no further, and ends when told.

STEVAL_TEST_ATTACK_SECONDS=600 pytest --timeout 1800 tests/service/test_attack.py      # ten minutes, not twelve seconds
"""

import itertools
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pytest

from steval.service.http.keys import add_key
from support.attacks import ATTACKS
from support.service_models import served_process, wait_until_ready

SECONDS = float(os.environ.get("STEVAL_TEST_ATTACK_SECONDS", "12"))
ATTACKERS = 6
GROWTH = 256 * 2**20
"""Bytes that a worker's memory may be larger after the second half of the attack than after the first."""
REQUEST = {"perturbations": ["STAT1"], "cells": 20, "seed": 3}


def memory(pid: int) -> int:
    """Resident bytes of a process and all below it, jobs left aside."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"job_process" not in (path.parent / "cmdline").read_bytes():
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") + memory(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def ask(url: str, key: str, method: str, path: str, json: object = None) -> httpx.Response:
    """One request on a connection of its own; where that was closed to make room for others, it is tried again."""
    for attempt in range(4):
        try:
            headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
            return httpx.request(method, url + path, json=json, headers=headers, timeout=120)
        except httpx.TransportError:
            if attempt == 3:
                raise
    raise AssertionError


def means(answer: httpx.Response) -> np.ndarray:
    """The predicted profile; its last digits depend on who shares the batch."""
    return np.array(answer.json()["predictions"][0]["mean"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="memory is read from /proc")
def test_a_mixture_of_attacks_hurts_nobody_else(
    tmp_path: Path, tiny_checkpoint: Path, service_cells: ad.AnnData
) -> None:
    keys = tmp_path / "keys.txt"
    polite, hostile = add_key(keys, "polite"), [add_key(keys, f"hostile{number}") for number in range(2)]
    cells = tmp_path / "cells.h5ad"
    service_cells[::10].copy().write_h5ad(cells)
    limits = {
        "STEVAL_MAX_CELLS": "2000", "STEVAL_HEADER_TIMEOUT": "1", "STEVAL_BODY_TIMEOUT": "2", "STEVAL_MAX_CONNECTIONS": "64",
        "STEVAL_JOB_TIMEOUT": "20", "STEVAL_MAX_JOBS": "4", "STEVAL_JOB_DIR": str(tmp_path / "jobs"), "STEVAL_THREADS": "1",
    }  # fmt: skip
    with served_process(str(tiny_checkpoint), "--api-key-file", str(keys), **limits) as (url, process):
        wait_until_ready(url, 300)
        port = int(url.rpartition(":")[2])
        expected = means(ask(url, polite, "POST", "/predict", REQUEST))
        statuses: Counter[int] = Counter()
        lost: Counter[str] = Counter()
        until = time.monotonic() + SECONDS

        def attack(number: int) -> None:
            rng = random.Random(number)
            for count in itertools.count():
                if count >= len(ATTACKS) and time.monotonic() >= until:
                    return
                one = ATTACKS[(number + count) % len(ATTACKS)]
                try:
                    statuses.update(one(port, hostile[number % 2], rng, cells))
                except (httpx.HTTPError, OSError):
                    lost[one.__name__] += 1

        attackers = [threading.Thread(target=attack, args=(number,)) for number in range(ATTACKERS)]
        for attacker in attackers:
            attacker.start()
        answered: Counter[int] = Counter()
        sizes = []
        while time.monotonic() < until or len(sizes) < 4:
            assert ask(url, polite, "GET", "/livez").status_code == 200
            answer = ask(url, polite, "POST", "/predict", REQUEST)
            answered[answer.status_code] += 1
            if answer.status_code == 200:
                np.testing.assert_allclose(means(answer), expected, rtol=1e-4, atol=1e-5)
            sizes.append(memory(process.pid))
            time.sleep(0.2)
        for attacker in attackers:
            attacker.join(120)
        assert not any(attacker.is_alive() for attacker in attackers)
        np.testing.assert_allclose(means(ask(url, polite, "POST", "/predict", REQUEST)), expected, rtol=1e-4, atol=1e-5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) in (0, 143)
    assert set(answered) <= {200, 429, 503}
    assert answered[200] >= sum(answered.values()) / 2, answered
    assert not {status for status in statuses if status >= 500 and status not in (501, 503, 504)}, statuses
    assert sum(statuses.values()) > 20 and {400, 401} <= set(statuses), (statuses, lost)
    half = len(sizes) // 2
    assert max(sizes[half:]) <= max(sizes[:half]) + GROWTH, sizes
    log = "".join(process.log)
    assert "Traceback" not in log and polite not in log and not any(key in log for key in hostile), log[-3000:]
