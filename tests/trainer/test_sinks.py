"""metrics.csv grows wider, is cut back on resume, and the other loggers are there when asked."""

import sys
from pathlib import Path

import pytest

from steval.errors import ConfigError
from steval.trainer.progress.sinks import CsvSink, cut_back
from support.tiny_runs import PHASES, run, tiny_config


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
    with pytest.raises(ConfigError, match="`loggers` asks for wandb, which is not installed"):
        run(tiny_config(screen_path, "loggers=[wandb]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
