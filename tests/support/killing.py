"""A process that fine-tunes in forked children that kill themselves with SIGKILL where they are told; for trainer/test_resume*.py.

One process imports everything once, so that the uninterrupted run, the killed ones and their resumptions compute under the
same conditions. Argument: a JSON file with `threads` and `runs`, each with `config`, `options`, `start` (a checkpoint, or none),
`whole` (directory of the uninterrupted run) and `scenarios`: `run_dir`, and where to die: `step`, `row`, or `file` with `number`;
`again`: where the resumed one dies; `held`: after so many files nothing is written any more, though training goes on.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser imports it, which each child would do again for a second

import steval.trainer.progress.state as state
from steval.checkpoints.store import load_checkpoint
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.keeper import Keeper
from steval.trainer.progress.writing import WritingThread
from steval.trainer.run import finetune


def die() -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(which: str, number: int) -> None:
    """Let the `number`-th write of `last.ckpt` or `best-val.safetensors` stop in its middle."""
    count = [0]

    def half(path: Path) -> None:
        count[0] += 1
        if count[0] == number:
            Path(path).write_bytes(b"PK\x03\x04 half a file")
            die()

    if which == "last.ckpt":
        save = torch.save

        def save_half(value: object, handle: object) -> None:
            count[0] += 1
            if count[0] == number:
                handle.write(b"PK\x03\x04 half a file")
                handle.flush()
                die()
            save(value, handle)

        state.torch.save = save_half
    else:
        import steval.checkpoints.store as store

        write = store.save_file

        def write_half(tensors: object, path: Path, metadata: object) -> None:
            half(path)
            write(tensors, path, metadata=metadata)

        store.save_file = write_half


def hold_files_after(number: int) -> None:
    """Let the thread that writes beside training stand still after `number` files, for good."""
    submit, count = WritingThread.submit, [0]

    def submit_held(self: WritingThread, write: Callable[[], object]) -> None:
        count[0] += 1
        submit(self, write if count[0] <= number else threading.Event().wait)

    WritingThread.submit = submit_held
    WritingThread.make_room = lambda self: None


def die_after_row(number: int) -> None:
    """Let the `number`-th row of metrics be the last thing that is done."""
    count, log = [0], Keeper.log

    def log_and_die(self: Keeper, *arguments: object) -> None:
        log(self, *arguments)
        count[0] += 1
        if count[0] == number:
            die()

    Keeper.log = log_and_die


def finish(config: FinetuneConfig | None, run_dir: Path, **options: object) -> None:
    """Run to the end in a child; without a configuration, resume."""
    child = os.fork()
    if not child:
        done = finetune(config, run_dir, resume=config is None, device="cpu", **options)
        os._exit(0 if done.finished else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, run_dir


def kill(config: FinetuneConfig | None, run_dir: Path, scenario: dict, **options: object) -> None:
    """Run, or resume, in a child that kills itself where the scenario says; its checkpoints are whole."""
    child = os.fork()
    if not child:
        if "file" in scenario:
            die_while_writing(scenario["file"], scenario["number"])
        if "held" in scenario:
            hold_files_after(scenario["held"])
        if "row" in scenario:
            die_after_row(scenario["row"])

        def on_step(progress: object) -> None:
            if progress.step == scenario.get("step"):
                die()

        finetune(config, run_dir, resume=config is None, device="cpu", on_step=on_step, **options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (scenario, status)
    for path in run_dir.glob("checkpoints/*.safetensors"):
        load_checkpoint(path)


def main() -> None:
    """Each run once to its end, then every scenario of it in children of its own."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    for planned in job["runs"]:
        config, options = FinetuneConfig.parse(planned["config"]), planned.get("options", {})
        if planned.get("start"):
            options = {**options, "init_from": Path(planned["start"])}
        finish(config, Path(planned["whole"]), **options)
        for scenario in planned["scenarios"]:
            run_dir = Path(scenario["run_dir"])
            kill(config, run_dir, scenario, **options)
            if "again" in scenario:
                kill(None, run_dir, scenario["again"])
            finish(None, run_dir)


if __name__ == "__main__":
    main()
