"""Two processes equal one process with the doubled batch, across a phase that unfreezes: with gradients averaged, and with every
tensor shared out (`fsdp`), whose files are those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steval.checkpoints.store import load_checkpoint
from steval.errors import ConfigError
from steval.trainer.progress.state import TrainerState, load_state
from support.tiny_runs import assert_same_run, last_weights, rows, run, tiny_config

# 32 sets an epoch: both ways of batching wrap at the same sets. Dropout draws differ between processes, so there is none.
SETTINGS = ("network.dropout=0.0",)
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def one(screen_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    directory = tmp_path_factory.mktemp("one") / "run"
    run(tiny_config(screen_path, *SETTINGS, "sets.per_batch=4"), directory)
    return directory


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_doubled_batch(
    strategy: str, one: Path, screen_path: Path, tmp_path: Path
) -> None:
    config = tiny_config(screen_path, *SETTINGS, "sets.per_batch=2", f"compute.strategy={strategy}")
    (tmp_path / "two.yaml").write_text(config.to_yaml())
    script = Path(__file__).parents[1] / "support" / "two_processes.py"
    arguments = {
        "ddp": ["-m", "steval", "finetune", "two.yaml", "-o", "two", "--device", "cpu", "--threads", "1"],
        "fsdp": [str(script), "two.yaml", "two", "resumed"],
    }
    command = [*LAUNCHER, *arguments[strategy]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    single, double = last_weights(one), last_weights(tmp_path / "two")
    assert single.keys() == double.keys()
    for name, tensor in single.items():
        assert torch.allclose(tensor, double[name], rtol=1e-4, atol=1e-6), name
    for first, second in zip(rows(one), rows(tmp_path / "two"), strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if name == "phase" or not first[name]:
                assert first[name] == second[name]
            else:
                assert float(first[name]) == pytest.approx(float(second[name]), rel=2e-3), (name, first["step"])
    _assert_same_form(one, tmp_path / "two")
    if strategy == "fsdp":
        assert_same_run(tmp_path / "two", tmp_path / "resumed")


def _assert_same_form(one: Path, other: Path) -> None:
    """Files that tell nothing of how many processes wrote them."""
    best, expected = (load_checkpoint(path / "checkpoints" / "best-val.safetensors") for path in (other, one))
    assert {name: t.shape for name, t in best.weights.items()} == {
        name: t.shape for name, t in expected.weights.items()
    }
    states = [load_state(path / "checkpoints" / "last.ckpt") for path in (one, other)]
    assert _moments(states[0]) == _moments(states[1])
    assert all(type(tensor) is torch.Tensor for tensor in states[1]["weights"].values())


def _moments(state: TrainerState) -> dict[tuple[int, str], torch.Size]:
    """Shape of each tensor of the optimiser's state."""
    found = state["optimiser"]["state"].items()
    return {(number, name): tensor.shape for number, values in found for name, tensor in values.items()}


@pytest.mark.parametrize("setting", ["compute.compile=true", "compute.cuda_graph=true", "average_weights=0.9"])
def test_what_shared_tensors_cannot_do_is_said_at_once(setting: str, screen_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"fsdp.*goes without {setting.split('=')[0]}.*take strategy ddp"):
        tiny_config(screen_path, "compute.strategy=fsdp", setting)
