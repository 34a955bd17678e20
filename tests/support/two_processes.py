"""One of several processes under `torch.distributed.run` for trainer/test_several_processes.py; arguments: configuration, run
directory."""

import sys
from pathlib import Path

import torch

from steval.trainer.config import FinetuneConfig
from steval.trainer.run import finetune

if __name__ == "__main__":
    torch.set_num_threads(1)
    finetune(FinetuneConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), device="cpu")
