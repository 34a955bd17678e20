"""Compiled kernels for the processes of scoring jobs.

A confined process can write beside itself alone, and what it writes is never run by another: so each job is given a copy of what
this machine has compiled, and what was missing is compiled once by a process that reads the packaged cells and nothing else.

    python -m steval.service.score.kernels PROFILE
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import steval
from steval.data.compiled import copy_kernels
from steval.data.files import ScratchDirectory
from steval.service.jobs.files import KERNELS, TEMPORARY

log = logging.getLogger(__name__)

NICENESS = 19
"""Nobody waits for it."""


class JobKernels:
    """Gives jobs their copies; has what they missed compiled, once for each profile."""

    def __init__(self) -> None:
        self._given = 0
        self._compiling: dict[str, subprocess.Popen[bytes]] = {}

    def give(self, directory: Path) -> None:
        """Copy what there is into the directory of a job that is about to start."""
        self._given = copy_kernels(Path(steval.__file__).parent, directory / TEMPORARY / KERNELS)

    def take_note(self, directory: Path, profile: str) -> None:
        """After a job of `profile`: where it had to compile for itself, compile for those that come."""
        num_files = sum(1 for _ in (directory / TEMPORARY / KERNELS).rglob("*.nb[ic]"))
        if num_files > self._given and profile not in self._compiling:
            log.info("compiling the kernels of profile %s for the jobs that come", profile)
            command = [sys.executable, "-m", __name__, profile]
            self._compiling[profile] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def stop(self) -> None:
        """End what is still compiling."""
        for process in self._compiling.values():
            process.kill()
            process.wait()


def compile_for(profile: str) -> None:
    """Score the packaged cells against themselves, so that numba keeps what `profile` needs."""
    import scipy.sparse as sp

    from steval.data.cells.cellfile import write_anndata
    from steval.data.cells.scale import lognorm
    from steval.data.example import example
    from steval.evaluator.metrics.profiles import PROFILES
    from steval.evaluator.settings import ScoreSettings
    from steval.workflows.score import ScoreRequest, score_predictions

    with ScratchDirectory("steval-kernels") as folder:
        cells, scale = example(), PROFILES[profile].scale
        if scale == "lognorm":
            cells.X = lognorm(sp.csr_matrix(cells.X), 1e4)
        path = folder / "cells.h5ad"
        write_anndata(cells, path)
        settings = ScoreSettings.model_validate({"profile": profile})
        score_predictions(ScoreRequest(preds=path, real=path, out=folder / "score", scale=scale, settings=settings))


if __name__ == "__main__":
    os.nice(NICENESS)
    compile_for(sys.argv[1])
