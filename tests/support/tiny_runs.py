"""Runs of a second: their configuration, and what they leave behind."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from steval.checkpoints.store import load_checkpoint
from steval.settings import apply_overrides
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.notices import OnStep
from steval.trainer.progress.state import Progress, load_state
from steval.trainer.run import RunResult, finetune

PHASES = [
    {"name": "frozen", "trains": ["encoders", "outputs"], "steps": 7, "rates": {"encoders": 1e-3, "outputs": 1e-3}},
    {
        "name": "all",
        "trains": "all",
        "steps": 9,
        "rates": {"encoders": 1e-3, "outputs": 1e-3, "backbone": 5e-4, "layer_decay": 0.5},
    },
]


def tiny_config(path: Path, *overrides: str, **values: Any) -> FinetuneConfig:
    """Two phases of 7 and 9 steps on `path`, a row every 2 steps, validation every 4, a saved state every 3."""
    base = {
        "data": {"files": [str(path)], "split": {"by": "cells", "val": 0.2, "test": 0.2}},
        "network": {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1, "head": "down-then-up"},
        "phases": PHASES,
        "sets": {"size": 8, "per_batch": 4},
        "checks": {"validate_every": 4, "log_every": 2, "save_every": 3},
        "loggers": ["csv"],
    }
    return FinetuneConfig.parse(apply_overrides(base | values, overrides))


def run(config: FinetuneConfig | None, run_dir: Path, **options: Any) -> RunResult:
    """Fine-tune on the CPU."""
    return finetune(config, run_dir, device="cpu", **options)


def stop_at(step: int, *signals: int) -> OnStep:
    """Send this process the signals (Ctrl-C) after optimiser step `step`."""

    def on_step(progress: Progress) -> None:
        if progress.step == step:
            for number in signals or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    return on_step


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights of `last.ckpt`."""
    return load_state(run_dir / "checkpoints" / "last.ckpt")["weights"]


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the time."""
    with (run_dir / "metrics.csv").open() as handle:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(handle)]


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs have the same weights to the bit, optimiser states and rows."""
    first, second = (load_state(path / "checkpoints" / "last.ckpt") for path in (one, other))
    assert first["step"] == second["step"]
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
    for index, state in first["optimiser"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second["optimiser"]["state"][index][key]), (index, key)
    assert rows(one) == rows(other)
    assert (first["best"], first["best_digest"]) == (second["best"], second["best_digest"])
    best, expected = (load_checkpoint(path / "checkpoints" / "best-val.safetensors") for path in (one, other))
    assert best.manifest.tensors == expected.manifest.tensors
    names, others = ({file.name for file in path.rglob("*")} for path in (one, other))
    assert names == others


def run_killed(runs: list[dict[str, Any]], scratch: Path) -> None:
    """Let killing.py do `runs` (see there) in a process of its own."""
    job = scratch / "job.json"
    job.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": runs}))
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run([sys.executable, str(script), str(job)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
