"""`steval finetune`: what it prints, its exit codes, and a run from the command line."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from steval.cli.app import app
from steval.trainer.config import FinetuneConfig

SMALL = [
    "--set", "phases.0.steps=2", "--set", "network.hidden_dim=16", "--set", "network.num_heads=2",
    "--set", "sets.per_batch=2", "--set", "sets.size=8", "--set", "loggers=[csv]", "--device", "cpu",
]  # fmt: skip


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def test_the_resolved_configuration_is_printed_and_reads_back(tmp_path: Path) -> None:
    result = invoke("raw-staged", "--set", "phases.1.rates.backbone=5e-5", "--set", "seed=3", "--print-config")
    assert result.exit_code == 0
    (tmp_path / "config.yaml").write_text(result.stdout)
    config = FinetuneConfig.load(tmp_path / "config.yaml")
    assert (config.phases[1].rates.backbone, config.seed) == (5e-5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["raw-stagd"], "did you mean 'raw-staged'", id="unknown recipe"),
        pytest.param(["absent.yaml"], "no such configuration file", id="missing file"),
        pytest.param(["full", "--set", "phases.0.stps=3"], "did you mean 'steps'", id="typo"),
        pytest.param(["full", "--run", "r"], "no training data", id="no data"),
        pytest.param([], "give CONFIG", id="nothing"),
        pytest.param(["--resume", "absent"], "no run to resume", id="no run"),
        pytest.param(["--resume", "absent", "--run", "other"], "leave --run", id="two directories"),
    ],
)
def test_bad_usage_is_one_message_and_exit_2(arguments: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in re.sub(r"[\s│]+", " ", result.output)
    assert not list(tmp_path.iterdir())


def test_an_estimate_fits_a_terminal_and_leaves_nothing(lognorm_path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["full", "--set", f"data.files=['{lognorm_path}']", "--estimate"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r"(1 / ddp|\d fsdp) ", line)]
    assert len(rows) == 16 and all(float(value) >= 0 for row in rows for value in row[-6:])
    told = json.loads(invoke(*arguments, "--json").stdout)["notices"]
    assert len(told[0]["rows"]) == 16
    assert "not both" in re.sub(r"[\s│]+", " ", invoke(*arguments, "--dry-run").output)
    assert not list(tmp_path.iterdir())


def test_a_run_then_resume_and_another_from_it(lognorm_path: Path, tmp_path: Path) -> None:
    files = f"data.files=['{lognorm_path}']"
    result = invoke("quick-cpu", "--set", files, *SMALL, "--run", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Preflight" in result.stdout
    assert "Phase 1 of 1, all: 2 steps" in result.stdout
    assert "best checkpoint:" in result.stdout
    again = invoke("quick-cpu", "--set", files, *SMALL, "--run", tmp_path / "run")
    assert again.exit_code == 2
    assert "--resume" in again.output
    resumed = invoke("--resume", tmp_path / "run", "--device", "cpu", "--json")
    assert json.loads(resumed.stdout)["finished"] is True
    best = json.loads(resumed.stdout)["best"]["path"]
    small = ["--set", "phases.0.steps=2", "--set", "loggers=[csv]", "--device", "cpu", "--set", "sets.size=8"]
    started = invoke("frozen-only", "--init-from", best, "--set", files, *small, "--run", tmp_path / "second")
    assert started.exit_code == 0, started.output
    assert "Transplant" in started.stdout


def test_an_arc_configuration_is_translated_and_its_dead_keys_named(tmp_path: Path) -> None:
    config = {
        "data": {"kwargs": {"embed_key": None, "pert_col": "gene"}},
        "model": {"name": "state", "kwargs": {"cell_set_len": 32, "softplus": True}},
        "training": {"max_steps": 10, "loss_fn": "mse"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = invoke("--from-arc-config", tmp_path / "config.yaml", "--print-config")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout)["sets"]["size"] == 32
    assert "no effect in arc-state: training.loss_fn" in result.stderr


@pytest.mark.slow
def test_ctrl_c_in_a_real_process_leaves_a_run_that_resumes(lognorm_path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "steval",
        "finetune",
        "quick-cpu",
        "--set",
        f"data.files=['{lognorm_path}']",
        *SMALL,
    ]
    command += ["--set", "phases.0.steps=5000", "--set", "checks.save_every=10", "--run", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"continue with: steval finetune --resume {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors
    assert state.stat().st_size
