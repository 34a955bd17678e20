"""Compiled kernels work where nothing can be written, and are compiled once where something can."""

import os
import subprocess
import sys

import numba

from steval.data.compiled import compiled

PROGRAM = """
import sys, time
import numpy as np
from steval.evaluator.measure.rank_kernels import back_transform
start = time.perf_counter()
assert abs(back_transform(np.log1p(np.array([3.0])))[0] - 3.0) < 1e-12
sys.stdout.write(str(sum(back_transform.stats.cache_hits.values())))
"""


def test_kernels_are_compiled_once_for_all_processes(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
    assert list(tmp_path.rglob("*.nbi"))


def test_kernels_work_where_no_cache_can_be_written(monkeypatch, caplog):
    original = numba.njit

    def without_cache(*arguments, cache=False, **settings):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(*arguments, **settings)

    monkeypatch.setattr(numba, "njit", without_cache)
    with caplog.at_level("INFO"):
        double = compiled(lambda x: 2 * x)
    assert double(21) == 42
    assert "NUMBA_CACHE_DIR" in caplog.text
