"""Fine-tuning on a GPU: the processors' numbers, no waiting inside a step, resuming, and running out of memory."""

from pathlib import Path

import pytest
import torch

from steval.errors import ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.state import Progress, load_state
from steval.trainer.run import RunResult, finetune
from support.tiny_runs import last_weights, rows, stop_at, tiny_config

pytestmark = pytest.mark.gpu


def run(config: FinetuneConfig | None, run_dir: Path, **options: object) -> RunResult:
    return finetune(config, run_dir, **({"device": "cuda"} | options))  # type: ignore[arg-type]


def test_losses_are_the_processors(screen_path: Path, tmp_path: Path) -> None:
    config = tiny_config(screen_path, "network.dropout=0", "compute.devices=1")
    run(config, tmp_path / "gpu")
    run(config, tmp_path / "cpu", device="cpu")
    for found, expected in zip(rows(tmp_path / "gpu"), rows(tmp_path / "cpu"), strict=True):
        for name, value in expected.items():
            if name.startswith(("train/", "val/", "grad_norm/")) and value:
                assert float(found[name]) == pytest.approx(float(value), rel=2e-3), name


@pytest.mark.parametrize("graph", ["false", "true"])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_the_host_never_waits_inside_a_step(screen_path: Path, tmp_path: Path, precision: str, graph: str) -> None:
    changes = [
        f"compute.precision={precision}",
        f"compute.cuda_graph={graph}",
        "compute.devices=1",
        "checks.log_every=100",
        "checks.validate_every=100",
    ]
    config = tiny_config(screen_path, *changes, "checks.save_every=100", "phases.0.steps=12")
    try:
        run(config, tmp_path / "run", on_step=_forbid_waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _forbid_waiting(progress: Progress) -> None:
    """Steps 4 to 10 of the first phase may not synchronise; the first ones allocate, the last one logs and saves."""
    inside = progress.phase == 0 and 3 <= progress.phase_step < 10
    torch.cuda.set_sync_debug_mode("error" if inside else "default")


@pytest.mark.parametrize(("step", "graph"), [(5, "false"), (8, "false"), (5, "true"), (12, "true")])
def test_a_stopped_run_goes_on_as_if_never_stopped(screen_path: Path, tmp_path: Path, step: int, graph: str) -> None:
    config = tiny_config(screen_path, "compute.devices=1", f"compute.cuda_graph={graph}", average_weights=0.9)
    run(config, tmp_path / "whole")
    assert not run(config, tmp_path / "parts", on_step=stop_at(step)).finished
    assert run(None, tmp_path / "parts", resume=True).finished
    expected = last_weights(tmp_path / "whole")
    for name, weight in last_weights(tmp_path / "parts").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    assert len(rows(tmp_path / "whole")) == len(rows(tmp_path / "parts"))


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_replayed_step_learns_what_steps_one_by_one_do(screen_path: Path, tmp_path: Path, precision: str) -> None:
    changes = ["compute.devices=1", f"compute.precision={precision}"]
    for name, graph in (("one by one", "false"), ("replayed", "true")):
        run(tiny_config(screen_path, *changes, f"compute.cuda_graph={graph}"), tmp_path / name)
    expected = last_weights(tmp_path / "one by one")
    for name, weight in last_weights(tmp_path / "replayed").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    for found, row in zip(rows(tmp_path / "replayed"), rows(tmp_path / "one by one"), strict=True):
        for name, value in row.items():
            if name.startswith(("train/", "val/", "grad_norm/", "lr/")) and value:
                assert float(found[name]) == pytest.approx(float(value), rel=1e-3), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_is_replayed_too(screen_path: Path, tmp_path: Path) -> None:
    changes = ["network.dropout=0", "compute.devices=1", "phases.1.steps=2"]
    for name, graph in (("one by one", "false"), ("replayed", "true")):
        run(tiny_config(screen_path, *changes, "compute.compile=true", f"compute.cuda_graph={graph}"), tmp_path / name)
    losses = [
        load_state(tmp_path / name / "checkpoints" / "last.ckpt")["best"]["value"]
        for name in ("one by one", "replayed")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_running_out_of_memory_says_what_to_lower_and_leaves_no_half_file(screen_path: Path, tmp_path: Path) -> None:
    config = tiny_config(screen_path, "network.hidden_dim=8192", "network.num_layers=8", "compute.devices=1")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ConfigError, match=r"ran out of memory. Lower.*sets.per_batch"):
            run(config, tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    left = sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert not [name for name in left if name.endswith((".ckpt", ".safetensors"))]
    assert left == sorted({"config.yaml", "run.json", *(name for name in left if name == "metrics.csv")})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_several_with_nccl_is_one_process(strategy: str, screen_path: Path, tmp_path: Path) -> None:
    """Across a phase that unfreezes; sharded weights are stopped, gathered into files and shared out again, too."""
    changes = ["network.dropout=0", "compute.devices=1", "compute.cuda_graph=false"]
    run(tiny_config(screen_path, *changes), tmp_path / "alone")
    config = tiny_config(screen_path, *changes, f"compute.strategy={strategy}")
    try:
        run(config, tmp_path / "whole")
        assert torch.distributed.get_backend() == "nccl"
        assert not run(config, tmp_path / "parts", on_step=stop_at(9)).finished
        assert run(None, tmp_path / "parts", resume=True).finished
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    expected = last_weights(tmp_path / "alone")
    for name in ("whole", "parts"):
        for tensor, weight in last_weights(tmp_path / name).items():
            torch.testing.assert_close(weight, expected[tensor], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_learns_the_same(screen_path: Path, tmp_path: Path) -> None:
    changes = ["network.dropout=0", "compute.devices=1", "phases.1.steps=2"]
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        run(tiny_config(screen_path, *changes, f"compute.compile={compiled}"), tmp_path / name)
    losses = [
        load_state(tmp_path / name / "checkpoints" / "last.ckpt")["best"]["value"] for name in ("eager", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
