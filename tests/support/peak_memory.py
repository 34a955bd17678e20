"""Runs whose memory is measured, each in a child of one process that has imported everything; for trainer/test_estimates.py.

Arguments: directories with `c.yaml`; `peak` is written there: how far a run grew from its first phase's start to its peak, bytes.
Checkpoints are written between steps and from the weights themselves: copies that wait beside steps for a disk, which an estimate
names apart, are not measured.
"""

import os
import resource
import sys
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser imports it, in a second and with memory of its own

from steval.trainer.config import FinetuneConfig
from steval.trainer.progress import keeper
from steval.trainer.progress.notices import Notice
from steval.trainer.progress.writing import WritingThread
from steval.trainer.run import finetune


def measure(place: Path) -> None:
    """One run."""
    before = []

    def report(notice: Notice) -> None:
        if notice.title.startswith("Phase 1"):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            before.append(pages * os.sysconf("SC_PAGE_SIZE"))

    finetune(FinetuneConfig.load(place / "c.yaml"), place / "run", device="cpu", report=report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (place / "peak").write_text(str(peak - before[0]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    WritingThread.submit = lambda self, write: self._run(write)  # type: ignore[method-assign]
    keeper.copied = lambda value: value  # type: ignore[assignment]
    for argument in sys.argv[1:]:
        child = os.fork()
        if not child:
            measure(Path(argument))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(1)
