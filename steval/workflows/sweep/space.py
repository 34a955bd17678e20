"""What a sweep is told: a configuration, which of its settings vary and how, how many trials, and when one is given up."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from steval.checkpoints.location import is_hub
from steval.errors import ConfigError
from steval.limits import Processes, Seed, Tally
from steval.settings import Settings, read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import config_path, with_recipe

Value = bool | int | float | str | None


class Parameter(Settings):
    """Values that a setting may take: `choices`, or numbers from `low` to `high` (whole ones where both are)."""

    choices: tuple[Value | tuple[Value, ...], ...] | None = None
    """Any values; in short a list in place of this mapping."""
    low: int | float | None = None
    """Least value."""
    high: int | float | None = None
    """Greatest value."""
    log: bool = False
    """Whether the range is even in its logarithm, as for rates."""
    step: int | float | None = Field(default=None, gt=0)
    """Between two values; none: any number, or every whole one."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("give choices (at least one), or low and high with log or step")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("give choices, or low and a greater high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values whose validity says that of all."""
        return self.choices if self.choices is not None else (self.low, self.high)


class Pruning(Settings):
    """A trial is given up when its value is worse than the median of the others' at the same step."""

    startup_trials: Tally = 5
    """Trials that run to their end first."""
    warmup_steps: Tally = 0
    """Optimiser steps before which none is given up."""


class SweepSpace(Settings):
    """A sweep; paths are relative to where the command runs, as those of `steval finetune`."""

    config: str
    """The configuration file or recipe that every trial starts from."""
    set: tuple[str, ...] = ()
    """`KEY=VALUE` changes to it for all trials."""
    init_from: str | None = None
    """The checkpoint that every trial starts from; none: from nothing."""
    space: dict[str, Parameter] = Field(min_length=1)
    """Settings that vary (`phases.0.rates.encoders`), and the values that each may take."""
    trials: Annotated[int, Field(ge=1, le=10**6)] = 20
    """How many in all, those of before an interruption among them."""
    workers: Processes = 1
    """Trials at once."""
    threads: Processes | None = None
    """CPU threads of each; none: the cores divided by `workers`."""
    device: str = "auto"
    """As `steval finetune --device`."""
    prune: Pruning | None = Pruning()
    """When a trial is given up; null: never."""
    seed: Seed = 0
    """Of the values that are tried; the runs' own seed is a setting of theirs."""

    def configuration(self, chosen: Mapping[str, Any]) -> FinetuneConfig:
        """The run of a trial with `chosen` values; raises `ConfigError`."""
        changes = [*self.set, *(f"{name}={json.dumps(value)}" for name, value in chosen.items())]
        path = config_path(self.config)
        return FinetuneConfig.parse_with(with_recipe(read_yaml(path), str(path)), changes, source=str(path))

    def require_valid(self) -> FinetuneConfig:
        """The configuration with the first value of each setting; a `ConfigError` lists every value that it does not take."""
        problems = []
        if self.init_from is not None and not is_hub(self.init_from) and not Path(self.init_from).exists():
            problems.append(f"init_from: there is no {self.init_from}")
        for name, parameter in self.space.items():
            for value in parameter.ends[1:]:
                try:
                    self.configuration({**self._first, name: value})
                except ConfigError as error:
                    problems.append(f"{name} = {value!r}: {error}")
        if problems:
            raise ConfigError("the sweep would try what no run takes", problems)
        return self.configuration(self._first)

    def what(self) -> dict[str, Any]:
        """What must be the same when a sweep goes on, `config` by what it says."""
        changing = ("trials", "workers", "threads", "device")
        kept = {key: value for key, value in self.as_dict().items() if key not in changing}
        return kept | {"config": self.configuration(self._first).digest()}

    @property
    def _first(self) -> dict[str, Any]:
        return {name: parameter.ends[0] for name, parameter in self.space.items()}
