"""A process that fine-tunes in forked children that kill themselves with SIGKILL where they are told; for trainer/test_resume.py.

One process imports everything once, so that the uninterrupted run, the killed ones and their resumptions compute under the
same conditions. Argument: a JSON file with `threads`, `config`, `whole` (directory of the uninterrupted run) and `scenarios`
(`run_dir`, and `step` or `file` with `number`).
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import steval.trainer.progress.state as state
from steval.checkpoints.store import load_checkpoint
from steval.trainer.config import FinetuneConfig
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


def finish(config: FinetuneConfig | None, run_dir: Path) -> None:
    """Run to the end in a child; without a configuration, resume."""
    child = os.fork()
    if not child:
        done = finetune(config, run_dir, resume=config is None, device="cpu")
        os._exit(0 if done.finished else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, run_dir


def main() -> None:
    """Run every scenario in a child of its own."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    config = FinetuneConfig.parse(job["config"])
    finish(config, Path(job["whole"]))
    for scenario in job["scenarios"]:
        child = os.fork()
        if not child:
            if "file" in scenario:
                die_while_writing(scenario["file"], scenario["number"])

            def on_step(progress: object, at: int | None = scenario.get("step")) -> None:
                if progress.step == at:
                    die()

            finetune(config, Path(scenario["run_dir"]), device="cpu", on_step=on_step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (scenario, status)
        for path in Path(scenario["run_dir"]).glob("checkpoints/*.safetensors"):
            load_checkpoint(path)
        finish(None, Path(scenario["run_dir"]))


if __name__ == "__main__":
    main()
