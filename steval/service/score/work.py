"""What is done around the process of a scoring job: compiled kernels are given to it, and its files are taken back."""

import json
from pathlib import Path

from steval.service.jobs.files import REQUEST, TEMPORARY
from steval.service.jobs.runner import Work
from steval.service.score.confinement import take_back
from steval.service.score.kernels import JobKernels


class ScoreWork(Work):
    """See `Work`."""

    def __init__(self) -> None:
        super().__init__("scoring", "steval.service.score.job_process")
        self._kernels = JobKernels()

    def before(self, directory: Path) -> None:
        self._kernels.give(directory)

    def after(self, directory: Path) -> None:
        take_back(directory / TEMPORARY)
        request = json.loads((directory / REQUEST).read_text(encoding="utf-8"))
        self._kernels.take_note(directory, request["body"]["profile"])

    def stop(self) -> None:
        self._kernels.stop()
