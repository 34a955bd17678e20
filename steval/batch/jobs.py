"""Jobs and their tasks as plain data: what passes between runner, engines and workers."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steval.batch.settings import Do
from steval.checkpoints.adapters.record import digest_of_both
from steval.data.columns import ColumnOptions
from steval.data.effects.decoding import DecodingChoice
from steval.evaluator.settings import ScoreSettings
from steval.predictor.requests import RequestItem
from steval.settings import Settings

Kind = Literal["predict", "assemble", "de", "score"]
DONE_FILE = "job.json"
ERROR_FILE = "error.json"
PREDICTIONS = "preds.h5ad"
SCORE_DIR = "score"
MOST_NAME = 200
"""Characters of a job's name in its directory; file systems allow 255."""


class Stamp(Settings):
    """A file as it was when the batch was planned; a worker that finds another one refuses."""

    place: str
    """Absolute path or URL."""
    num_bytes: int
    modified_ns: int
    """0 for a URL, whose copy is found by the remote file's own key."""
    sha256: str


def model_digest(checkpoint: Stamp, adapter: Stamp | None) -> str:
    """Digest of the checkpoint, or of what it makes with the adapter."""
    return checkpoint.sha256 if adapter is None else digest_of_both(checkpoint.sha256, adapter.sha256)


class Job(Settings):
    """One checkpoint, data set and request: everything a worker needs to know."""

    key: str
    """sha256 of all that the results depend on."""
    checkpoint_name: str
    data_name: str
    request_name: str
    checkpoint: Stamp
    """`sha256` is the checkpoint's own digest, of its metadata and so of each tensor."""
    adapter: Stamp | None = None
    """An adapter to `checkpoint`, which is its base then; `sha256` is the adapter's own digest."""
    others: tuple[Stamp, ...] = ()
    """More checkpoints, whose effects are averaged with those of `checkpoint`."""
    real: Stamp | None
    """None: the evaluation data that the checkpoint records."""
    train: Stamp | None
    predictions: Stamp | None
    """Predictions made before, for jobs that only score."""
    do: Do
    columns: ColumnOptions
    scale: Literal["lognorm"] | None
    items: tuple[RequestItem, ...]
    """What to predict; for jobs that only score, the perturbations of the data."""
    subset: bool
    """Whether `items` are only some of the data set's perturbations."""
    seed: int
    output: Literal["cells", "mean"]
    decoding: DecodingChoice
    score: ScoreSettings
    wants_de: bool
    """Whether DE is made in chunks and given to scoring."""
    chunk: int
    data_dirs: tuple[str, ...]
    real_key: str
    """sha256 of all that the real side's DE depends on; shared by jobs of one data set."""

    @property
    def model_digest(self) -> str:
        """Digest of the checkpoint, or of what it makes with the adapter."""
        return model_digest(self.checkpoint, self.adapter)

    @property
    def name(self) -> str:
        return f"{self.checkpoint_name}__{self.data_name}__{self.request_name}"

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Sorted names."""
        return tuple(sorted({item.perturbation for item in self.items}))

    @property
    def members(self) -> tuple[Stamp, ...]:
        """All checkpoints that predict together."""
        return self.checkpoint, *self.others

    @property
    def num_cells(self) -> int:
        return sum(item.num_cells for item in self.items)


_PARTS = re.compile("(real-)?[0-9a-f]{24}")


@dataclass(frozen=True)
class BatchLayout:
    """Where everything of one batch is."""

    root: Path

    @property
    def work(self) -> Path:
        """Parts of unfinished jobs, and what jobs share."""
        return self.root / "work"

    @property
    def fetched(self) -> Path:
        """Copies of remote files."""
        return self.work / "fetched"

    def is_part(self, path: Path) -> bool:
        """Whether an entry of `work` is one of ours."""
        return path.name == self.fetched.name or _PARTS.fullmatch(path.name) is not None

    def directory(self, job: Job) -> Path:
        """Results of the job; `job.json` is written last, so that it marks a whole result."""
        return self.root / "jobs" / f"{job.name[:MOST_NAME]}-{job.key[:8]}"

    def parts(self, job: Job) -> Path:
        return self.work / job.key[:24]

    def real_parts(self, job: Job) -> Path:
        return self.work / f"real-{job.real_key[:24]}"

    def predictions(self, job: Job) -> Path:
        return Path(job.predictions.place) if job.predictions else self.directory(job) / PREDICTIONS


@dataclass(frozen=True)
class Task:
    """One piece of work for one worker. It is done when `output` is there, which is written whole or not at all."""

    kind: Kind
    job: Job
    output: Path
    root: Path
    threads: int
    memory: int
    """Bytes that it is thought to need."""
    units: float
    """Size, in what the time of its kind is proportional to (see `estimates`)."""
    gpus: float = 0.0
    dtype: Literal["float32", "bf16"] = "float32"
    part: tuple[int, int] = (0, 0)
    """First and last+1 item (predict) or perturbation (de) of the chunk."""
    side: Literal["pred", "real"] = "pred"
    seconds: float = 3600.0
    """A worker that is at it for longer is stopped."""
    owner: str = ""
    """The runner that submitted it."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.job.name} {self.output.name}"


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    task: Task
    seconds: float = 0.0
    error: str | None = None
    """What went wrong; None: done."""
    error_kind: str = ""
    """Name of the exception's type, or `WorkerDied`."""
    retriable: bool = False
    """Whether the same task may succeed when it is tried again."""
    details: str = field(default="", repr=False)
    """The traceback of an error that is no `StevalError`."""


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping, or None where there is no (whole) one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
