"""A run at Weights & Biases (the extra `wandb`): its curves as they come, its files and best checkpoint as artifacts at its end.

`WANDB_MODE=offline` keeps all of it in the run directory (`wandb/`), for `wandb sync` later. The run's id there stands in
`run.json`, so that a resumed run of ours goes on as the same one.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from steval.errors import ConfigError
from steval.trainer.progress.rundir import RunDirectory
from steval.wording import needs_extra

_KEY = "wandb_run"
"""Of `run.json`."""
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class WandbSink:
    """Takes one row of measurements after another, see `sinks.Sink`."""

    def __init__(self, directory: RunDirectory, project: str, settings: Mapping[str, Any], *, resumed: bool):
        known = directory.read_record().get(_KEY) if resumed else None
        self._run = _begin(directory, project, known, config=dict(settings))
        directory.update_record({_KEY: self._run.id})

    def write(self, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=int(place["step"]))

    def sync(self) -> None:
        """wandb's own process keeps what it was given."""

    def close(self) -> None:
        self._run.finish()


def keep_artifacts(directory: RunDirectory, project: str) -> None:
    """Log a finished run's files, and its best checkpoint (with the adapter, where there is one), as artifacts of the run that its
    curves went to."""
    wandb = require_wandb()
    run = _begin(directory, project, directory.read_record()[_KEY])
    name = _NOT_PLAIN.sub("-", directory.path.absolute().name)
    kinds = {
        "model": ("checkpoint", [directory.best_path, directory.adapter_path]),
        "run": ("run", [directory.config_path, directory.record_path, directory.metrics_path]),
    }
    for kind, (suffix, paths) in kinds.items():
        artifact = wandb.Artifact(f"{name}-{suffix}", type=kind)
        for path in paths:
            if path.is_file():
                artifact.add_file(str(path))
        run.log_artifact(artifact)
    run.finish()


def require_wandb() -> ModuleType:
    """The package; a `ConfigError` where it is not installed."""
    from importlib import import_module

    try:
        return import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"{needs_extra('`loggers: [wandb]`', 'wandb', 'wandb')}; or take it out of `loggers`"
        ) from error


def _begin(directory: RunDirectory, project: str, run_id: str | None, **options: Any) -> Any:
    name = directory.path.absolute().name
    known = {} if run_id is None else {"id": run_id, "resume": "allow"}
    wandb = require_wandb()
    try:
        return wandb.init(dir=str(directory.path), project=project, name=name, **known, **options)
    except Exception as error:  # no key, no network, a project that is not one's own: each an error of wandb's
        raise ConfigError(
            f"Weights & Biases does not take the run ({error}): log in with `wandb login`, set WANDB_MODE=offline, or take wandb "
            "out of `loggers`"
        ) from error
