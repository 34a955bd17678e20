"""A sweep from its space to its table: trials side by side, given up where others are better; an interrupted one goes on."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steval.data.files import require_directory
from steval.data.locks import DirectoryLock
from steval.errors import StevalError
from steval.limits import require_processes
from steval.wording import counted
from steval.workflows.sweep.outcome import write_outcome
from steval.workflows.sweep.space import SweepSpace
from steval.workflows.sweep.study import SweepStudy, TrialRecord
from steval.workflows.sweep.trials import (
    TRIALS,
    Command,
    RunningTrial,
    begin_trial,
    chosen_text,
    own_steval,
    require_at_rest,
)

LOOK_SECONDS = 0.3
Tell = Callable[[str], None]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found."""

    directory: Path
    metric: str
    records: list[TrialRecord]
    """The best first."""

    @property
    def best(self) -> TrialRecord | None:
        """The best of those that ran to their end."""
        return next((one for one in self.records if one.state == "complete"), None)

    def run_of(self, record: TrialRecord) -> Path:
        """The run directory of a trial."""
        return self.directory / TRIALS / f"{record.number:04d}"


def sweep(space: SweepSpace, out: Path, *, tell: Tell = lambda text: None, steval: Command = own_steval) -> SweepResult:
    """Run the trials of `space` that `out` does not have yet, and write the table and the figure.

    Interrupted (Ctrl-C, SIGTERM), it lets its trials save their state; the same call goes on. Raises `ConfigError` for a space that
    is not valid, and for a directory with another sweep.
    """
    require_processes(space.workers, "workers")
    config = space.require_valid()
    require_directory(out)
    with DirectoryLock(out):
        study = SweepStudy(out, space, minimise=config.best_is_lowest)
        for trial in study.interrupted():
            require_at_rest(out, trial.number)
        started = space.model_copy(update={"init_from": study.start()})
        _Sweep(started, out, study, tell, steval).run()
        result = SweepResult(out, config.checks.select_best, study.records())
        write_outcome(out, result.metric, result.records, minimise=config.best_is_lowest)
    return result


class _Sweep:
    def __init__(self, space: SweepSpace, out: Path, study: SweepStudy, tell: Tell, steval: Command):
        self._space, self._out, self._study, self._tell, self._steval = space, out, study, tell, steval
        self._running: list[RunningTrial] = []
        self._waiting = deque(study.interrupted())

    def run(self) -> None:
        """Until there are as many trials as asked for, and none runs."""
        try:
            while self._fill() or self._running:
                time.sleep(LOOK_SECONDS)
                for one in list(self._running):
                    self._look(one)
        finally:
            if self._running:
                saving = counted(len(self._running), "trial saves its state", "trials save their state")
                self._tell(f"{saving}; the same command goes on")
            for one in self._running:
                one.stop()
            for one in self._running:
                one.process.wait()

    def _fill(self) -> bool:
        """Begin trials while there is room; whether any was begun."""
        begun = False
        while len(self._running) < self._space.workers:
            if self._waiting:
                trial = self._waiting.popleft()
            elif self._study.num_trials < self._space.trials:
                trial = self._study.ask()
            else:
                break
            seen, chosen, begun = self._study.last_step(trial), self._study.chosen(trial), True
            try:
                self._running.append(
                    begin_trial(self._out, self._space, trial.number, trial, chosen, seen, self._steval)
                )
            except StevalError as error:  # values that do not go together
                self._study.fail(trial, str(error))
                self._tell(f"trial {trial.number} is not possible: {error}")
            else:
                self._tell(f"trial {trial.number}: {chosen_text(chosen)}")
        return begun

    def _look(self, one: RunningTrial) -> None:
        has_ended = one.process.poll() is not None
        for step, value in one.news():
            one.trial.report(value, step)
        if not has_ended:
            if not one.given_up and one.trial.should_prune():
                one.given_up = True
                one.stop()
            return
        self._running.remove(one)
        value = one.value() if one.process.returncode == 0 else None
        if value is not None:
            self._study.tell(one.trial, value)
            self._tell(f"trial {one.number} ended: {one.metric} {value:.6g}")
        elif one.given_up:
            self._study.prune(one.trial)
            self._tell(f"trial {one.number} was given up: others were better at the same step")
        else:
            self._study.fail(one.trial, one.last_words())
            self._tell(f"trial {one.number} failed: {one.last_words()}")
