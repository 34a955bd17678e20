"""The run's curves: `metrics.csv` always, TensorBoard and Weights & Biases when asked.

`metrics.csv` has one row for each step at which something was measured. It is cut back to the saved state on resume, so
that a killed and resumed run leaves the rows of an uninterrupted one.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from steval.data.files import atomic_path
from steval.errors import ConfigError, DataError
from steval.trainer.config import LoggerName
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.weights_and_biases import WandbSink, require_wandb

PLACE = ("step", "phase", "phase_step", "seconds")
"""Leading columns: optimiser steps over all phases, phase name, steps within it, seconds of training."""


class Sink(Protocol):
    """Takes one row of measurements after another."""

    def write(self, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """One row: `place` has the keys of `PLACE`."""
        ...

    def sync(self) -> None:
        """Everything written so far survives the end of the process."""
        ...

    def close(self) -> None: ...


class CsvSink:
    """`metrics.csv`: a column for each metric, empty where a row has no value; a new metric widens the table."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._columns = list(PLACE)
        if self._path.exists():
            self._columns = list(_read_rows(self._path)[0])
        else:
            self._rewrite([])
        self._handle = self._path.open("a", encoding="utf-8", newline="")

    def write(self, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        row = {**place, **values}
        new = [name for name in values if name not in self._columns]
        if new:
            self._widen(new)
        try:
            csv.writer(self._handle, lineterminator="\n").writerow([_text(row.get(name)) for name in self._columns])
            self._handle.flush()
        except OSError as error:
            raise DataError(f"cannot write {self._path}: {error.strerror or error}") from error

    def sync(self) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()

    def _widen(self, new: Sequence[str]) -> None:
        self._handle.close()
        rows = _read_rows(self._path)[1]
        self._columns += new
        self._rewrite(rows)
        self._handle = self._path.open("a", encoding="utf-8", newline="")

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        _write_rows(self._path, self._columns, rows)


def cut_back(path: Path, phases: Sequence[str], phase: int, phase_step: int) -> None:
    """Drop the rows of `metrics.csv` that lie after step `phase_step` of phase number `phase`, and a half-written last one."""
    if not Path(path).exists():
        return
    columns, rows = _read_rows(path)
    kept = [
        row
        for row in rows
        if row["phase"] in phases and (phases.index(row["phase"]), int(row["phase_step"])) <= (phase, phase_step)
    ]
    _write_rows(path, columns, kept)


class TensorBoardSink:
    """Event files below `events/`; rows after `purge_step` of an earlier attempt are hidden."""

    def __init__(self, directory: Path, purge_step: int | None):
        SummaryWriter = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = SummaryWriter(log_dir=str(directory), purge_step=purge_step)

    def write(self, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=int(place["step"]))

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _require(module: str, package: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"`loggers` asks for {package}, which is not installed: pip install {package}, or take it out of `loggers`"
        ) from error


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows; a last line without its end is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    table = list(csv.reader(line for line in lines if line.endswith("\n")))
    if not table:
        return list(PLACE), []
    return table[0], [dict(zip(table[0], row, strict=True)) for row in table[1:] if len(row) == len(table[0])]


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def open_sinks(
    loggers: Sequence[LoggerName],
    directory: RunDirectory,
    *,
    project: str,
    settings: Mapping[str, Any],
    purge_step: int | None,
) -> list[Sink]:
    """The sinks asked for; metrics.csv is always the first. `purge_step`: the step that a resumed run continues from."""
    sinks: list[Sink] = []
    if "tensorboard" in loggers:
        sinks.append(TensorBoardSink(directory.events_dir, purge_step))
    if "wandb" in loggers:
        sinks.append(WandbSink(directory, project, settings, resumed=purge_step is not None))
    return [CsvSink(directory.metrics_path), *sinks]


def require_loggers(loggers: Sequence[LoggerName]) -> None:
    """Raise a `ConfigError` for a logger whose package is not installed."""
    if "tensorboard" in loggers:
        _require("torch.utils.tensorboard", "tensorboard")
    if "wandb" in loggers:
        require_wandb()
