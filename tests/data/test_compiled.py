"""Compiled kernels work where nothing can be written, and are compiled once where something can."""

import os
import subprocess
import sys

import numba
import numba.core.caching
import pytest

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
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    with caplog.at_level("INFO"):
        double = compiled(lambda x: 2 * x)
    assert double(21) == 42
    assert "NUMBA_CACHE_DIR" in caplog.text


@pytest.mark.parametrize("broken", ["load", "save"])
def test_a_cache_that_cannot_be_read_or_written_costs_a_compilation(monkeypatch, caplog, tmp_path, broken):
    """Another user's files, a full disk."""
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, broken, refuse)
    with caplog.at_level("INFO"):
        double = compiled(_double)
        assert double(21) == 42
    assert "Permission denied" in caplog.text


def test_kernels_are_copied_to_where_numba_looks_for_them(tmp_path):
    kept, copied = tmp_path / "kept", tmp_path / "copied"
    for directory, hits in ((kept, "0"), (copied, "1")):
        if directory == copied:
            environment = {**os.environ, "NUMBA_CACHE_DIR": str(kept)}
            program = "from pathlib import Path; import steval; from steval.data.compiled import copy_kernels\n"
            program += f"assert copy_kernels(Path(steval.__file__).parent, Path({str(copied)!r})) >= 2"
            subprocess.run([sys.executable, "-c", program], env=environment, check=True)
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(directory)}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout == hits


def _double(x):
    return 2 * x
