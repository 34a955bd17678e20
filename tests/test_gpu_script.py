"""The benchmark of a GPU proves itself on the processors: every stage ends, its results agree, the table holds its figures."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_measuring_stages_run_small_on_the_processors(tmp_path: Path) -> None:
    """All but the one that runs pytest; in one process, which imports once."""
    command = ["bash", "benchmarks/gpu/run.sh", "--out", str(tmp_path), "--device", "cpu", "--small"]
    command += ["--together", "--stages", "rates,finetune,commands,ranks,predict"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**_environment(), "PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [stage["status"] for stage in stages.values()] == ["done"] * 5
    found = {name: stage["results"] for name, stage in stages.items()}
    assert found["finetune"]["largest_gradient_difference"] == 0
    assert found["finetune"]["runs"]["4 sets"]["steps_per_second"] > 0
    assert set(found["commands"]["seconds"]) == {"finetune", "predict on cpu", "score on cpu"}
    assert found["commands"]["largest_difference_of_scores"] == 0 and found["commands"]["metrics"] == 3
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


def test_the_wheels_to_carry_are_pinned_and_are_all_that_is_needed() -> None:
    """Every dependency of fine-tuning, prediction and scoring is carried, there, or left out; what is left out is not imported."""
    command = ["bash", "benchmarks/gpu/pack_wheels.sh", "--list"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split(": ")[0]: line.split(": ")[1].split() for line in said.splitlines()}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.lower() for name in listed["carried"]} <= pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        re.split(r"[<>=\[]", one)[0] for one in (*project["dependencies"], *project["optional-dependencies"]["train"])
    }
    assert needed - {name for names in listed.values() for name in names} == set()
    command = [sys.executable, "-c", IMPORTS, ",".join([*listed["left out"], "bentoml", "httpx", "starlette"])]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=_environment())


IMPORTS = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, "benchmarks/gpu")
for name in ("run", "make", "rates", "finetune", "commands", "ranks", "predict", "tests", "steval.service.predict.warmup"):
    importlib.import_module(name)
for name in ("finetune", "predict", "score"):
    importlib.import_module(f"steval.cli.commands.{name}")
"""
"""Stages and what the commands of one import first, where the packages named as the argument are not installed."""


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
