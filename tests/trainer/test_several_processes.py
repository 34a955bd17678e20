"""Two processes with gradients averaged equal one process with the doubled batch, across a phase that unfreezes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steval.checkpoints.store import load_checkpoint
from support.tiny_runs import last_weights, rows, run, tiny_config


def test_two_processes_equal_one_with_the_doubled_batch(screen_path: Path, tmp_path: Path) -> None:
    # 32 sets an epoch: both ways of batching wrap at the same sets. Dropout draws differ between processes, so there is none.
    one = tiny_config(screen_path, "network.dropout=0.0", "sets.per_batch=4")
    two = tiny_config(screen_path, "network.dropout=0.0", "sets.per_batch=2")
    run(one, tmp_path / "one")
    (tmp_path / "two.yaml").write_text(two.to_yaml())
    script = Path(__file__).parents[1] / "support" / "two_processes.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path / "two.yaml"), str(tmp_path / "two")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    single, double = last_weights(tmp_path / "one"), last_weights(tmp_path / "two")
    start = load_checkpoint(tmp_path / "one" / "checkpoints" / "best-val.safetensors").weights
    for name, tensor in single.items():
        assert torch.allclose(tensor, double[name], rtol=1e-4, atol=1e-6), name
        assert start[name].shape == tensor.shape
    for first, second in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if name == "phase" or not first[name]:
                assert first[name] == second[name]
            else:
                assert float(first[name]) == pytest.approx(float(second[name]), rel=2e-3), (name, first["step"])
