"""A process that fine-tunes in forked children which kill themselves with SIGKILL where they are told; run by test_resume.py.

One process imports everything once; argument: a JSON file with `threads`, `config` and `scenarios` (`run_dir`, and
`step` or `file` with `number`).
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import steval.trainer.state as state
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


def main() -> None:
    """Run every scenario in a child of its own."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    config = FinetuneConfig.parse(job["config"])
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


if __name__ == "__main__":
    main()
