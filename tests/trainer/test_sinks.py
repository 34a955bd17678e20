"""metrics.csv grows wider, is cut back on resume, and the other loggers are there when asked."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from steval.errors import ConfigError
from steval.trainer.progress.sinks import CsvSink, cut_back
from support.tiny_runs import PHASES, run, stop_at, tiny_config


def place(step: int, phase: str, phase_step: int) -> dict[str, object]:
    return {"step": step, "phase": phase, "phase_step": phase_step, "seconds": 0.5}


def test_a_new_metric_widens_the_table(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "metrics.csv")
    sink.write(place(1, "a", 1), {"train/gene": 0.123456789012})
    sink.write(place(2, "a", 2), {"val/gene": 2.0})
    sink.close()
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,phase,phase_step,seconds,train/gene,val/gene\n1,a,1,0.5,0.12345679,\n2,a,2,0.5,,2\n"
    )
    again = CsvSink(tmp_path / "metrics.csv")
    again.write(place(3, "b", 1), {"train/gene": 1.5})
    again.close()
    assert (tmp_path / "metrics.csv").read_text().endswith("3,b,1,0.5,1.5,\n")


def test_rows_after_the_saved_state_and_half_rows_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,phase,phase_step,seconds,x\n2,a,2,0,1\n3,a,3,0,2\n3,b,0,0,3\n5,b,2,0,4\n6,b,3,0")
    cut_back(path, ["a", "b"], 1, 0)
    assert path.read_text() == "step,phase,phase_step,seconds,x\n2,a,2,0,1\n3,a,3,0,2\n3,b,0,0,3\n"
    cut_back(path, ["a", "b"], 0, 2)
    assert path.read_text() == "step,phase,phase_step,seconds,x\n2,a,2,0,1\n"
    cut_back(tmp_path / "none.csv", ["a"], 0, 0)


def test_tensorboard_events_are_written(screen_path: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tiny_config(screen_path, "loggers=[tensorboard]", phases=PHASES[:1]), tmp_path / "run")
    events = reader.EventAccumulator(str(tmp_path / "run" / "events"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("val/gene")] == [0, 4, 7]
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(
    screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"`loggers: \[wandb\]` needs wandb, which is not installed.*'\.\[wandb\]'.*take it out"
    ):
        run(tiny_config(screen_path, "loggers=[wandb]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FakeWandb(ModuleType):
    """What we call of the package, which is too large for the tests' environment; keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[str, int]] = []
        self.kept: dict[str, list[str]] = {}
        self.open = 0

    def init(self, **options: Any) -> "FakeWandb":
        self.begun.append(options)
        self.open += 1
        self.id = options.get("id") or f"run-{len(self.begun)}"
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows += [(name, step) for name in values]

    def Artifact(self, name: str, type: str) -> SimpleNamespace:
        files = self.kept.setdefault(f"{type} {name}", [])
        return SimpleNamespace(add_file=lambda path: files.append(Path(path).name))

    def log_artifact(self, artifact: SimpleNamespace) -> None:
        assert self.open == 1

    def finish(self) -> None:
        self.open -= 1


def test_a_run_goes_to_wandb_with_its_files_and_goes_on_there_when_it_is_resumed(
    screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = tiny_config(screen_path, "loggers=[wandb]", "wandb_project=cells", phases=PHASES[:1])
    run(config, tmp_path / "my run", on_step=stop_at(4))
    assert (len(fake.begun), fake.open, fake.kept) == (1, 0, {})
    begun = fake.begun[0]
    assert (begun["project"], begun["name"], begun["config"]["seed"]) == ("cells", "my run", config.seed)
    run(None, tmp_path / "my run", resume=True)
    assert [begun.get("id") for begun in fake.begun] == [None, "run-1", "run-1"]
    assert {step for name, step in fake.rows if name == "val/gene"} == {0, 4, 7}
    assert fake.kept == {
        "model my-run-checkpoint": ["best-val.safetensors"],
        "run my-run-run": ["config.yaml", "run.json", "metrics.csv"],
    }
    assert fake.open == 0


def test_what_wandb_refuses_is_a_sentence(screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise Exception("api_key not configured (no-tty)")  # its errors have no kind in common with Python's

    fake = FakeWandb()
    monkeypatch.setattr(fake, "init", init)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = tiny_config(screen_path, "loggers=[wandb]", phases=PHASES[:1])
    with pytest.raises(ConfigError, match=r"does not take the run \(api_key not configured.*WANDB_MODE=offline"):
        run(config, tmp_path / "run")
