"""The study of a sweep: which values to try next, what came of them; in a file of Optuna's that outlives the process."""

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steval.checkpoints.location import is_hub, local, shown
from steval.errors import ConfigError, DataError
from steval.wording import needs_extra
from steval.workflows.sweep.space import Parameter, SweepSpace

STUDY_NAME = "study.journal"
_SPACE, _START, _ERROR = "space", "start", "error"
_STATES = ("complete", "pruned", "running", "failed")
"""In the order of a table."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the study has it."""

    number: int
    state: str
    """`complete`, `pruned`, `failed` or `running`."""
    value: float | None
    """Of the metric; of a pruned one its last."""
    chosen: dict[str, Any]
    error: str = ""


class SweepStudy:
    """A study in the file `directory/study.journal`; the one process that holds the directory's lock uses it."""

    def __init__(self, directory: Path, space: SweepSpace, *, minimise: bool):
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.NopPruner()
        if space.prune is not None:
            pruner = optuna.pruners.MedianPruner(space.prune.startup_trials, space.prune.warmup_steps)
        self._optuna, self._space = optuna, space
        _drop_torn_line(directory / STUDY_NAME)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = JournalStorage(JournalFileBackend(str(directory / STUDY_NAME)))
            self._study = optuna.create_study(
                study_name="sweep", storage=storage, load_if_exists=True, pruner=pruner,
                direction="minimize" if minimise else "maximize",
            )  # fmt: skip
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise DataError(
                f"{directory / STUDY_NAME} is damaged ({error}): name another directory with --out. The finished trials below "
                f"{directory} are whole runs"
            ) from error
        # a sweep that goes on draws what the one before did not
        self._study.sampler = optuna.samplers.TPESampler(seed=space.seed + len(self._study.trials))
        known, what = self._study.user_attrs.get(_SPACE), space.what()
        if known is None:
            self._study.set_user_attr(_SPACE, what)
        elif known != what:
            changed = sorted(key for key in known.keys() | what.keys() if known.get(key) != what.get(key))
            raise ConfigError(
                f"{directory} holds a sweep of another space ({', '.join(changed)} changed): name another directory with --out; "
                "trials, workers, threads and device may change"
            )

    def start(self) -> str | None:
        """The checkpoint that all trials start from; of a branch at a hub, which may move, the commit that the first one found."""
        given = self._space.init_from
        if given is None or not is_hub(given):
            return given
        known = self._study.user_attrs.get(_START)
        if known is None:
            known = shown(local(given))
            self._study.set_user_attr(_START, known)
        return known

    def ask(self) -> Any:
        """The next trial."""
        return self._study.ask()

    def interrupted(self) -> Iterator[Any]:
        """Trials that were running when the sweep ended."""
        for frozen in self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,)):
            yield self._optuna.trial.Trial(self._study, frozen._trial_id)

    def last_step(self, trial: Any) -> int:
        """The last step that a trial reported a value of; -1: none."""
        frozen = next(one for one in self._study.trials if one.number == trial.number)
        return max(frozen.intermediate_values, default=-1)

    def chosen(self, trial: Any) -> dict[str, Any]:
        """The values of a trial, drawn where they were not."""
        return {name: _plain(one, _drawn(trial, name, one)) for name, one in self._space.space.items()}

    def tell(self, trial: Any, value: float) -> None:
        """A trial has ended well."""
        self._study.tell(trial, value)

    def prune(self, trial: Any) -> None:
        """A trial was given up."""
        self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, trial: Any, error: str) -> None:
        """A trial has failed."""
        trial.set_user_attr(_ERROR, error)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    @property
    def num_trials(self) -> int:
        """All that were begun."""
        return len(self._study.trials)

    def records(self) -> list[TrialRecord]:
        """Every trial, the best first, those without a value last."""
        sign = 1 if self._study.direction.name == "MINIMIZE" else -1
        found = [self._record(one) for one in self._study.trials]
        return sorted(found, key=lambda one: (_STATES.index(one.state), sign * (one.value or 0.0)))

    def _record(self, trial: Any) -> TrialRecord:
        """Of one of Optuna's; a trial that was given up has the last value that it reported."""
        reported = trial.intermediate_values
        value = trial.value if trial.value is not None or not reported else reported[max(reported)]
        space = self._space.space
        chosen = {name: _plain(space[name], drawn) for name, drawn in trial.params.items()}
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "running")
        return TrialRecord(trial.number, state, value, chosen, str(trial.user_attrs.get(_ERROR, "")))


def _drawn(trial: Any, name: str, parameter: Parameter) -> Any:
    """A value of the study; choices are JSON, for Optuna keeps plain values alone."""
    if parameter.choices is not None:
        return trial.suggest_categorical(name, [json.dumps(value) for value in parameter.choices])
    if parameter.is_whole:
        return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log)
    return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _plain(parameter: Parameter, drawn: Any) -> Any:
    return drawn if parameter.choices is None else json.loads(drawn)


def _drop_torn_line(journal: Path) -> None:
    """Cut off an entry that was not written to its end: a full disk leaves one, and the next entry would continue its line."""
    content = journal.read_bytes() if journal.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(journal, end)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(needs_extra("steval sweep", "optuna", "sweep")) from error
    return optuna
