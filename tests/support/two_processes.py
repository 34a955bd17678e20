"""One of several processes under `torch.distributed.run` for trainer/test_several_processes.py; arguments: configuration, run
directory, and a directory for the same run once more, stopped in the second phase and resumed."""

import os
import signal
import sys
from pathlib import Path

import torch

from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.state import Progress
from steval.trainer.run import finetune


def stop(progress: Progress) -> None:
    """As Ctrl-C does, which reaches every process."""
    if progress.step == 8:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = FinetuneConfig.load(Path(sys.argv[1]))
    finetune(config, Path(sys.argv[2]), device="cpu")
    for directory in map(Path, sys.argv[3:]):
        assert not finetune(config, directory, device="cpu", on_step=stop).finished
        assert finetune(None, directory, device="cpu", resume=True).finished
