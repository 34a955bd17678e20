"""The benchmark of a GPU proves itself on the processors: every stage ends, its results agree, the table holds its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_measuring_stages_run_small_on_the_processors(tmp_path: Path) -> None:
    """All but those that run pytest and `steval` themselves, which other tests do; in one process, which imports once."""
    command = ["bash", "benchmarks/gpu/run.sh", "--out", str(tmp_path), "--device", "cpu", "--small"]
    command += ["--together", "--stages", "rates,finetune,ranks,predict"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**_environment(), "PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [stage["status"] for stage in stages.values()] == ["done"] * 4
    found = {name: stage["results"] for name, stage in stages.items()}
    assert found["finetune"]["largest_gradient_difference"] == 0
    assert found["finetune"]["runs"]["4 sets"]["steps_per_second"] > 0
    assert found["predict"]["largest_difference"]["float32"] == 0
    assert found["ranks"]["statistics_equal"] and found["ranks"]["largest_p_difference"] < 1e-12
    for text in ("bf16_FLOPs", "4 sets, plain loop", "to h5ad", "de_on_device_s"):
        assert text in done.stdout


def test_a_budget_that_is_spent_leaves_stages_out_by_name(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu/run.sh", "--out", str(tmp_path), "--device", "cpu", "--small", "--budget", "1"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**_environment(), "PYTHON": sys.executable}
    )
    assert done.returncode == 1
    assert done.stdout.count("left out: the budget was spent") >= 6
    assert len(json.loads((tmp_path / "results.json").read_text())["stages"]) == 6


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
