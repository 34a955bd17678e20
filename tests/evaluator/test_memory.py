"""Memory follows the largest perturbation and the controls, not the files: files larger than the memory allowed score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

NUM_CELLS, NUM_GENES, NUM_PERTURBATIONS, NUM_CONTROLS = 8_000, 3_000, 24, 400
HEADROOM = 72 * 2**20
"""Bytes that scoring may take beside what a process that has scored a small pair holds. Each of the three files is larger;
a dense perturbation for each thread, the tables and a few hundred bytes a cell are not."""

PROGRAM = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from steval.evaluator.scoring import score
small, pred, real, headroom = sys.argv[1:]
options = {"scale": "lognorm", "threads": 2, "bootstrap": 10}
score(small, small, train=small, **options)
with ThreadPoolExecutor(2) as pool:  # the linear algebra library keeps a buffer for each thread
    list(pool.map(lambda size: np.ones((size, size), np.float32) @ np.ones((size, size), np.float32), [1024] * 4))
held = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(held.split()[1]) * 1024 + int(headroom)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
report = score(pred, real, train=pred, **options)
values = dict(report.breakdown.select("metric", "value").iter_rows())
print(json.dumps({"values": values, "score": report.score, "checks": report.integrity.height}))
"""


def write_cells(path: Path, num_cells: int, num_controls: int, seed: int) -> Path:
    """Lognorm cells of every second gene, even or odd ones, perturbations in random order."""
    generator = np.random.default_rng(seed)
    per_cell = NUM_GENES // 2
    first = generator.integers(0, 2, (num_cells, 1), dtype=np.int32)
    columns = (2 * np.arange(per_cell, dtype=np.int32) + first).ravel()
    values = generator.random(num_cells * per_cell, dtype=np.float32) * 2 + np.float32(0.1)
    indptr = np.arange(num_cells + 1) * per_cell
    names = np.array(["non-targeting", *(f"P{i:02d}" for i in range(NUM_PERTURBATIONS))])
    codes = np.concatenate([np.zeros(num_controls, int), np.arange(num_cells - num_controls) % NUM_PERTURBATIONS + 1])
    obs = pd.DataFrame({"target_gene": pd.Categorical(names[generator.permutation(codes)])})
    obs.index = obs.index.astype(str)
    matrix = sp.csr_matrix((values, columns, indptr), shape=(num_cells, NUM_GENES))
    ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(NUM_GENES)])).write_h5ad(path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_files_larger_than_memory_are_scored(tmp_path):
    small = write_cells(tmp_path / "small.h5ad", 500, 20, 0)
    pred, real = (write_cells(tmp_path / f"{seed}.h5ad", NUM_CELLS, NUM_CONTROLS, seed) for seed in (1, 2))
    assert min(pred.stat().st_size, real.stat().st_size) > 1.2 * HEADROOM
    arguments = [sys.executable, "-c", PROGRAM, str(small), str(pred), str(real), str(HEADROOM)]
    found = subprocess.run(
        arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    report = json.loads(found.stdout)
    assert all(value is not None and np.isfinite(value) for value in report["values"].values()), report
    assert report["score"] is not None
    assert report["checks"] > 10
