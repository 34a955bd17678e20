"""The trials of a sweep: ordinary runs, each `steval finetune` in a process of its own, watched through its `metrics.csv`."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steval.data.files import atomic_path, require_directory
from steval.data.locks import DirectoryLock
from steval.machine import num_cores
from steval.trainer.progress.rundir import RunDirectory
from steval.workflows.sweep.space import SweepSpace

CONFIGS, LOGS, TRIALS = "configs", "logs", "trials"
"""Directories of a sweep: what each trial was given, what it said, what it left."""
Command = Callable[[Sequence[str]], list[str]]
"""Makes the command line of `steval` with arguments."""


def own_steval(arguments: Sequence[str]) -> list[str]:
    """The `steval` of this interpreter."""
    return [sys.executable, "-m", "steval", *arguments]


@dataclass
class RunningTrial:
    """A trial whose process runs."""

    trial: Any
    number: int
    directory: RunDirectory
    process: subprocess.Popen[bytes]
    log: Path
    metric: str
    seen: int = -1
    """The last step that the study has a value of."""
    given_up: bool = False
    _changed: int = field(default=0, repr=False)

    def news(self) -> list[tuple[int, float]]:
        """Step and value of each validation since the last look."""
        path = self.directory.metrics_path
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed == self._changed:
            return []
        self._changed = changed
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader(
            line for line in lines if line.endswith("\n")
        )  # the last may be in the middle of being written
        found = [(int(row["step"]), float(row[self.metric])) for row in rows if row.get(self.metric)]
        new = [(step, value) for step, value in found if step > self.seen]
        self.seen = max((step for step, _ in new), default=self.seen)
        return new

    def stop(self) -> None:
        """Ask it to end after its step; it saves its state."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def value(self) -> float | None:
        """Of its best checkpoint, where it has finished."""
        record = self.directory.read_record()
        return float(record["best"]["value"]) if record.get("status") == "finished" and record.get("best") else None

    def last_words(self) -> str:
        """The end of what it said, for a trial that failed."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:500] if lines else f"exit code {self.process.returncode}, and not a word"


def begin_trial(
    out: Path,
    space: SweepSpace,
    number: int,
    trial: Any,
    chosen: dict[str, Any],
    seen: int,
    steval: Command = own_steval,
) -> RunningTrial:
    """Start the process of a trial, or let one go on that was interrupted."""
    name = f"{number:04d}"
    directory = RunDirectory(out / TRIALS / name)
    settings = space.configuration(chosen)
    config_path, log = out / CONFIGS / f"{name}.yaml", out / LOGS / f"{name}.txt"
    for place in (config_path.parent, log.parent, directory.path.parent):
        require_directory(place)
    with atomic_path(config_path) as partial:
        partial.write_text(settings.to_yaml(), encoding="utf-8")
    if directory.state_path.is_file():
        arguments = ["finetune", "--resume", str(directory.path)]
    else:
        start = ["--from-nothing"] if space.init_from is None else ["--init-from", space.init_from]
        arguments = ["finetune", str(config_path), "--run", str(directory.path), "--overwrite", *start]
    threads = space.threads or max(1, num_cores() // space.workers)
    arguments += ["--device", space.device, "--threads", str(threads), "--json"]
    with log.open("ab") as said:
        process = subprocess.Popen(
            steval(arguments), stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=dict(os.environ),
            start_new_session=True,  # Ctrl-C is for the sweep, which tells its trials
        )  # fmt: skip
    return RunningTrial(trial, number, directory, process, log, settings.checks.select_best, seen)


def require_at_rest(out: Path, number: int) -> None:
    """Raise a `ConfigError` where the process of a trial still runs whose sweep was killed."""
    directory = out / TRIALS / f"{number:04d}"
    if directory.is_dir():
        with DirectoryLock(directory):
            pass


def chosen_text(chosen: dict[str, Any]) -> str:
    """The values of a trial for a person."""
    return ", ".join(
        f"{name} {json.dumps(value) if not isinstance(value, float) else f'{value:.4g}'}"
        for name, value in chosen.items()
    )
