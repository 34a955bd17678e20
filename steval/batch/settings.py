"""What a batch manifest may say: checkpoints × data sets × requests, how to score, how to run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steval.batch.places import plain_name
from steval.data.columns import ColumnOptions
from steval.data.effects.decoding import DecodingChoice
from steval.data.outputs import real_path
from steval.evaluator.settings import ScoreSettings
from steval.limits import Count, Gibibytes, Processes, Seconds, Seed, Tally
from steval.machine import MAX_THREADS
from steval.predictor.requests import NumCells
from steval.settings import Settings

Do = Literal["predict", "score", "both"]
EngineName = Literal["local", "ray"]


class CheckpointEntry(Settings):
    """One checkpoint, or all that a glob finds; a list of paths is one ensemble."""

    path: str | tuple[str, ...]
    """Path, glob (`runs/*/checkpoints/best-val.safetensors`) or fsspec URL; relative to the manifest. A list: all that it finds
    predict together, as `steval predict A B C` does."""
    adapter: str | None = None
    """An adapter to the checkpoint, which is its base: path or fsspec URL, relative to the manifest. Not to a list."""
    name: str | None = None
    """Name in tables and directories. None: the file's (of an adapter: its own), with as much of its path as tells it from the
    others; `ensemble` for a list."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, list, tuple)) else value

    @field_validator("path")
    @classmethod
    def _some_paths(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("name at least one checkpoint")
        return value

    @model_validator(mode="after")
    def _adapter_of_one(self) -> "CheckpointEntry":
        if self.adapter is not None and not isinstance(self.path, str):
            raise ValueError(
                "an adapter goes with one checkpoint, not with a list; make checkpoints by steval merge and list those"
            )
        return self


class DataEntry(Settings):
    """One data set, or all that a glob finds."""

    real: str | None = None
    """h5ad with real cells, controls among them: path, glob or fsspec URL, relative to the manifest."""
    recorded: bool = False
    """In place of `real`: the evaluation data that each checkpoint records."""
    name: str | None = None
    """Name in tables and directories; none: from the path."""
    train: str | None = None
    """Training cells for the baselines. None: the checkpoint's training data, else there are no baselines."""
    columns: ColumnOptions = ColumnOptions()
    """Where its labels are; none: as the checkpoint, the file or the defaults say."""
    scale: Literal["lognorm"] | None = None
    """Settles the scale of a file that does not declare it."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"recorded": True} if value == "recorded" else {"real": value}
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "DataEntry":
        if (self.real is None) != self.recorded:
            raise ValueError("give either real: FILE.h5ad or recorded: true")
        return self


class RequestEntry(Settings):
    """What to do with every checkpoint and data set."""

    name: str = "all"
    """Name in tables and directories; other characters than letters, digits and `._+-` become hyphens."""
    do: Do = "both"
    """`predict` cells; `score` cells that were predicted before (`predictions` says where they are); or `both`."""
    perturbations: tuple[str, ...] = ()
    """Only these; empty: all of the data set, or of `file`."""
    file: str | None = None
    """CSV or TSV table of perturbations and cell numbers, as for `steval predict --request`."""
    cells: NumCells | None = None
    """Cells of each perturbation (and cell type). None: as many as the data set has."""
    seed: Seed = 0
    """Of the predictions."""
    output: Literal["cells", "mean"] = "cells"
    """Every predicted cell, or one mean profile for each perturbation."""
    decoding: DecodingChoice = "checkpoint"
    """How predictions become cells, as for `steval predict --decoding`."""
    predictions: str | None = None
    """For `score`: the predictions, with {checkpoint} and {data} in place of their names."""

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        return plain_name(value)

    @model_validator(mode="after")
    def _possible(self) -> "RequestEntry":
        problems = []
        if (self.do == "score") != (self.predictions is not None):
            problems.append("predictions goes with do: score, and only there")
        if self.output == "mean" and self.do != "predict":
            problems.append("output: mean cannot be scored; it goes with do: predict")
        if self.file is not None and (self.perturbations or self.cells):
            problems.append("file has its own perturbations and cell numbers; leave perturbations and cells out")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Running(Settings):
    """How to run; nothing here changes a result."""

    engine: EngineName = "local"
    """`local`: processes of this machine; `ray`: a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster (`auto`, `ray://host:port`); None: a fresh one on this machine."""
    workers: Count | None = None
    """Tasks at once. None: as many as cores and memory allow."""
    threads: Processes = 1
    """Cores of each task."""
    memory_gb: Annotated[Gibibytes, Field(gt=0)] | None = None
    """Memory that all tasks together may take. None: four fifths of what is available."""
    gpus: float = Field(default=0, ge=0, le=MAX_THREADS)
    """GPUs of each prediction task; 0: predict on the CPU."""
    machine_gpus: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 1
    """GPUs of this machine, for the local engine."""
    dtype: Literal["float32", "bf16"] = "float32"
    """Weights and activations in prediction."""
    retries: Tally = 2
    """How often a task is tried again after its worker died or it failed for another reason than its input."""
    task_seconds: Seconds | None = None
    """A worker that is at one task for longer is stopped and the task tried again, as after its death. None: an hour, or fifty
    times what the task's size lets expect where that is more."""
    lease_seconds: Seconds = 60.0
    """A runner on another machine that gave no sign of life for so long is taken for dead."""


class BatchManifest(Settings):
    """A batch: every checkpoint with every data set and every request."""

    checkpoints: tuple[CheckpointEntry, ...]
    """Which models."""
    data: tuple[DataEntry, ...]
    """With which real cells."""
    requests: tuple[RequestEntry, ...] = (RequestEntry(),)
    """What is predicted; left out: all perturbations of the data."""
    score: ScoreSettings = ScoreSettings()
    """As the options of `steval score`."""
    out: str | None = None
    """Output directory, relative to the manifest. None: the manifest's name with `.batch`."""
    data_dirs: tuple[str, ...] = ()
    """Where to look for recorded data files that moved."""
    chunk: Count = 25
    """Perturbations of one task. Part of what makes results bit-equal, so part of a job's identity."""
    run: Running = Running()
    """How to run; changes no result."""

    @field_validator("checkpoints", "data", "requests")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("name at least one")
        return value

    @model_validator(mode="after")
    def _names(self) -> "BatchManifest":
        names = [request.name for request in self.requests]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"requests need names of their own; more than once: {', '.join(repeated)}")
        return self


def out_dir(manifest: BatchManifest, path: Path) -> Path:
    """Where the results of the manifest file `path` go."""
    if manifest.out is not None:
        return real_path(path.parent / manifest.out)
    return real_path(path.with_suffix(".batch"))
