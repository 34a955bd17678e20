"""A run that is stopped or killed and resumed ends as one that never stopped: weights to the bit, rows, best checkpoint."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from steval.data.locks import DirectoryLock
from steval.errors import CheckpointError, ConfigError, DataError
from steval.trainer.progress.state import STATE_FORMAT, Progress, load_state
from steval.trainer.progress.stopping import RunInterrupted
from steval.trainer.run import RunResult
from support.tiny_runs import PHASES, assert_same_run, rows, run, run_killed, stop_at, tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, screen_path: Path) -> Path:
    """The uninterrupted run, with dropout and averaged weights."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(tiny_config(screen_path, average_weights=0.9), run_dir).finished
    return run_dir


SCENARIOS = [
    pytest.param({"step": 1}, id="before the first saved state"),
    pytest.param({"step": 5}, id="middle of the first phase"),
    pytest.param({"step": 7}, id="end of the first phase"),
    pytest.param({"step": 8}, id="start of the second phase"),
    pytest.param({"step": 13}, id="middle of the second phase"),
    pytest.param({"step": 16}, id="after the last step"),
    pytest.param({"file": "last.ckpt", "number": 1}, id="while writing the first state"),
    pytest.param({"file": "last.ckpt", "number": 4}, id="while writing a later state"),
    pytest.param({"file": "best-val.safetensors", "number": 1}, id="while writing the first best checkpoint"),
    pytest.param({"file": "best-val.safetensors", "number": 3}, id="while writing a later best checkpoint"),
    pytest.param({"step": 11, "again": {"step": 13}}, id="twice"),
    pytest.param({"step": 6, "held": 2}, id="a state written, the best checkpoint after it not yet"),
    pytest.param({"step": 6, "held": 3}, id="a best checkpoint newer than the state, and nothing after it"),
    pytest.param({"step": 15, "held": 8}, id="files of the second phase not written yet"),
]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, screen_path: Path) -> dict[str, Path]:
    """Run directories of processes that were killed with SIGKILL and resumed, by scenario; under `""` the uninterrupted run."""
    root = tmp_path_factory.mktemp("killed")
    scenarios = [parameter.values[0] for parameter in SCENARIOS]
    places = {json.dumps(scenario): root / str(number) for number, scenario in enumerate(scenarios)}
    planned = {
        "whole": str(root / "whole"),
        "config": tiny_config(screen_path, average_weights=0.9).as_dict(),
        "scenarios": [scenario | {"run_dir": str(places[json.dumps(scenario)])} for scenario in scenarios],
    }
    run_killed([planned], root)
    return places | {"": root / "whole"}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_killed_run_resumes_to_the_same_end(scenario: dict, resumed: dict[str, Path]) -> None:
    run_dir, whole = resumed[json.dumps(scenario)], resumed[""]
    assert_same_run(whole, run_dir)


@pytest.mark.parametrize("step", [2, 7, 11])
def test_ctrl_c_stops_after_the_step_and_resumes(step: int, whole: Path, tmp_path: Path, screen_path: Path) -> None:
    config = tiny_config(screen_path, average_weights=0.9)
    handler = signal.getsignal(signal.SIGINT)
    stopped = run(config, tmp_path / "run", on_step=stop_at(step))
    assert not stopped.finished
    assert stopped.step in (step, step + 1)
    assert signal.getsignal(signal.SIGINT) is handler
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_says_which_it_was(number: int, tmp_path: Path, screen_path: Path) -> None:
    assert run(tiny_config(screen_path), tmp_path / "run", on_step=stop_at(2, number)).stopped_by == number


def test_a_second_ctrl_c_stops_at_once_with_a_sentence_and_resumes(
    whole: Path, tmp_path: Path, screen_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(
        RunInterrupted, match=r"stopped at once by SIGINT; .*steval finetune --resume \S+/run"
    ) as caught:
        run(
            tiny_config(screen_path, average_weights=0.9),
            tmp_path / "run",
            on_step=stop_at(5, signal.SIGINT, signal.SIGINT),
        )
    assert caught.value.exit_code == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_before_there_is_anything_to_save_stops_at_once(
    number: int, tmp_path: Path, screen_path: Path
) -> None:
    def on_preflight(notice: object) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(RunInterrupted, match="before any state was saved") as caught:
        run(tiny_config(screen_path), tmp_path / "run", report=on_preflight)
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "run").exists()


def test_one_command_at_a_time(tmp_path: Path, screen_path: Path) -> None:
    refused = []

    def on_step(progress: Progress) -> None:
        if progress.step == 4:
            for config, options in ((None, {"resume": True}), (tiny_config(screen_path), {"overwrite": True})):
                with pytest.raises(ConfigError, match="in use by another steval command"):
                    run(config, tmp_path / "run", **options)
                refused.append(config)

    assert run(tiny_config(screen_path), tmp_path / "run", on_step=on_step).finished
    assert len(refused) == 2
    assert run(None, tmp_path / "run", resume=True).finished


def test_a_best_checkpoint_that_is_not_the_runs_own_is_refused(tmp_path: Path, screen_path: Path) -> None:
    config = tiny_config(screen_path, "checks.save_every=1")
    other = run(tiny_config(screen_path, "seed=1"), tmp_path / "other").best
    assert not run(config, tmp_path / "run", on_step=stop_at(5)).finished
    best = tmp_path / "run" / "checkpoints" / "best-val.safetensors"
    best.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match=r"holds other weights: this run's best are those of step 4"):
        run(None, tmp_path / "run", resume=True)
    best.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        run(None, tmp_path / "run", resume=True)


def test_overwrite_takes_nothing_away_before_the_new_run_is_found_good(tmp_path: Path, screen_path: Path) -> None:
    assert run(tiny_config(screen_path), tmp_path / "run").finished
    with pytest.raises(DataError, match="no file matches"):
        run(tiny_config(tmp_path / "absent.h5ad"), tmp_path / "run", overwrite=True)
    assert run(None, tmp_path / "run", resume=True).finished


def test_a_finished_run_resumes_to_itself(whole: Path) -> None:
    before = (whole / "checkpoints" / "last.ckpt").read_bytes()
    assert run(None, whole, resume=True).finished
    assert (whole / "checkpoints" / "last.ckpt").read_bytes() == before


def test_the_state_is_plain_data(whole: Path) -> None:
    state = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["format"] == STATE_FORMAT
    assert state["step"] == 16


def test_a_run_directory_is_never_taken_silently(whole: Path, screen_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume, replace it with --overwrite"):
        run(tiny_config(screen_path), whole)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        run(None, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="differs from the one"):
        run(tiny_config(screen_path, "seed=1", average_weights=0.9), whole, resume=True)
    with pytest.raises(ConfigError, match="leave --init-from out"):
        run(None, whole, resume=True, init_from=whole / "checkpoints" / "best-val.safetensors")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty.*thesis\.txt"):
        run(tiny_config(screen_path), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_state_that_is_a_program_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Program:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"format": STATE_FORMAT, "weights": Program()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as a trainer state"):
        load_state(tmp_path / "last.ckpt")
    assert not marker.exists()
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="no trainer state of this steval"):
        load_state(tmp_path / "last.ckpt")


def test_changed_data_is_not_resumed_on(screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.h5ad"
    data.write_bytes(screen_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    run(tiny_config(Path("data.h5ad")), tmp_path / "run", on_step=stop_at(3))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with data.open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(DataError, match=r"has changed since the run was started[\s\S]*data\.h5ad"):
        run(None, tmp_path / "run", resume=True)
    data.write_bytes(screen_path.read_bytes())
    assert run(None, tmp_path / "run", resume=True).finished


def test_a_signal_at_a_phases_last_step_begins_no_other(tmp_path: Path, screen_path: Path) -> None:
    """The signal comes after the step was found to be no stop: what follows is not begun, and resuming begins it."""
    config = tiny_config(screen_path)
    last = PHASES[0]["steps"]
    stopped = run(config, tmp_path / "run", on_step=stop_at(last))
    assert (stopped.finished, stopped.step) == (False, last)
    assert {row["phase"] for row in rows(tmp_path / "run")} == {PHASES[0]["name"]}
    run(None, tmp_path / "run", resume=True)
    run(config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_runs_directory_is_its_own_until_its_end(tmp_path: Path, screen_path: Path) -> None:
    held = []

    def finish(result: RunResult) -> None:
        with pytest.raises(ConfigError, match="in use by another"):
            DirectoryLock(result.run_dir).acquire()
        held.append(result.finished)

    config = tiny_config(screen_path)
    assert not run(config, tmp_path / "run", on_step=stop_at(3), finish=finish).finished
    assert held == []
    run(None, tmp_path / "run", resume=True, finish=finish)
    assert held == [True]
    with DirectoryLock(tmp_path / "run"):
        pass
