"""Files are written beside training: steps go on meanwhile, order and errors are as if each were written at once."""

import threading
from pathlib import Path

import pytest
import torch

import steval.trainer.progress.keeper as keeper
from steval.checkpoints.store import load_checkpoint
from steval.errors import DataError
from steval.trainer.progress.state import Progress, TrainerState, load_state, save_state
from steval.trainer.progress.writing import WritingThread, copied
from support.tiny_runs import assert_same_run, run, tiny_config


def test_steps_go_on_while_a_state_is_written_which_is_of_its_own_moment(
    screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(screen_path, average_weights=0.9)
    run(config, tmp_path / "whole")
    later, written = threading.Event(), []

    def save_late(path: Path, state: TrainerState) -> None:
        written.append((state["step"], later.wait(60)))
        save_state(path, state)

    def on_step(progress: Progress) -> None:
        if progress.step == 5:  # two steps after the state of step 3
            later.set()

    monkeypatch.setattr(keeper, "save_state", save_late)
    run(config, tmp_path / "run", on_step=on_step)
    assert written[0] == (3, True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert not any(thread.name.startswith("checkpoints") for thread in threading.enumerate())


@pytest.mark.parametrize("step", [3, 7, 16], ids=["middle of a phase", "its end", "the last write of all"])
def test_a_write_that_fails_ends_the_run_which_resumes(
    step: int, screen_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(screen_path, average_weights=0.9)
    run(config, tmp_path / "whole")
    steps = []

    def fail(path: Path, state: TrainerState) -> None:
        if state["step"] == step:
            raise DataError(f"cannot write {path}: the disk is gone")
        save_state(path, state)

    with monkeypatch.context() as patched:
        patched.setattr(keeper, "save_state", fail)
        with pytest.raises(DataError, match="the disk is gone"):
            run(config, tmp_path / "run", on_step=lambda progress: steps.append(progress.step))
    assert step <= steps[-1] + 1 and steps[-1] <= {3: 7}.get(step, step), "within the phase, without one more state"
    state_path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert not state_path.exists() or load_state(state_path)["step"] < step
    load_checkpoint(tmp_path / "run" / "checkpoints" / "best-val.safetensors")
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_after_an_error_nothing_more_is_written() -> None:
    """A state must not follow the best checkpoint that it means and that is not there."""
    thread, done = WritingThread(), []

    def fail() -> None:
        raise OSError("no space")

    thread.submit(lambda: done.append(1))
    thread.submit(fail)
    thread.submit(lambda: done.append(3))
    with pytest.raises(OSError, match="no space"):
        thread.flush()
    with pytest.raises(OSError, match="no space"):
        thread.check()
    assert done == [1]
    assert thread.close() is None, "it has been raised"


def test_an_error_that_nobody_has_seen_is_handed_over_at_the_end() -> None:
    thread = WritingThread()
    error = OSError("no space")

    def fail() -> None:
        raise error

    thread.submit(fail)
    assert thread.close() is error


def test_a_copy_shares_nothing_with_what_goes_on_changing() -> None:
    state = {"weights": {"a": torch.ones(3)}, "rows": [torch.zeros(2)], "phases": [{"steps": 1}], "step": 4}
    taken = copied(state)
    state["weights"]["a"].add_(1)
    state["rows"][0].add_(1)
    state["phases"][0]["steps"] = 2
    assert torch.equal(taken["weights"]["a"], torch.ones(3)) and torch.equal(taken["rows"][0], torch.zeros(2))
    assert taken["phases"] == [{"steps": 1}] and taken["step"] == 4
