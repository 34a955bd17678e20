"""How much memory and time a task takes: rough figures before anything ran, then the ledger's own.

The figures were measured on one core of a 2024 server with 16 perturbations × 100 cells and 800 controls × 6,000 genes, and
hold within a factor of two for 50 × 200 cells and 2,000 controls × 18,080 genes (both cores: 8 s for `vcc`, 40 s for `full`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steval.batch.jobs import Job, Kind
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.baselines import BASELINES
from steval.evaluator.settings import ScoreSettings

WORKER_BYTES = 700 * 2**20
"""A process with torch, AnnData and the compiled kernels loaded."""
CELL_BYTES = 3
"""Bytes in memory for each entry (cell × gene) of a group that is read: a fifth to a third are non-zero, 8 to 12 bytes each."""
BATCH_CELLS = 2048
"""Cells in the network at once, its intermediate values included."""
FIRST_GUESS: dict[Kind, float] = {"predict": 4.0, "assemble": 0.6, "de": 2.2, "score": 2.2}
"""Core-seconds per unit. A unit is 10⁸ entries (cells × genes) that the task writes (assemble) or takes through differential
expression (de, score); for prediction 10¹¹ floating point operations."""
LOADING_SECONDS: dict[Kind, float] = {"predict": 1.5, "assemble": 0.5, "de": 0.5, "score": 4.0}
"""Of each task; scoring also draws a report. A thousand or ten thousand bootstrap resamples make no difference beside it."""
READING = 0.5
"""Metrics of one side without its differential expression, beside one with it."""
ENERGY = 2.7
"""Energy distances (profile `full`), in units per 10¹¹ (pairs of cells × genes)."""
CHECKS, SCALE = 3, 3
"""Sides that are scored anew: for the checks of `full`, and for the scale of metrics on counts (the generic response, and about as
much twice for the halves of the real cells); beside them one for each baseline and for each split of the ceiling (two halves)."""

LEAST_LIMIT = 3600.0
PATIENCE = 50.0
"""Times the first guess."""


@dataclass(frozen=True)
class DataSize:
    """A job's real cells."""

    num_perturbed: int
    num_controls: int
    num_genes: int
    has_training: bool
    """Whether there are training cells, and so baselines."""

    @property
    def num_cells(self) -> int:
        return self.num_perturbed + self.num_controls


@dataclass(frozen=True)
class Sizes:
    """What the tasks of one job handle."""

    checkpoint_bytes: int
    num_predicted: int
    data: DataSize
    score: ScoreSettings

    @classmethod
    def of(cls, job: Job, data: DataSize) -> "Sizes":
        """Sizes of a planned job."""
        return cls(sum(one.num_bytes for one in job.members), job.num_cells, data, job.score)

    def units(self, kind: Kind, share: float = 1.0) -> float:
        """Size of a task that does `share` of its kind's work for the job."""
        genes = self.data.num_genes
        if kind == "predict":
            flops = 2 * (self.checkpoint_bytes / 4) * self.num_predicted * share
            return (flops + 1e9) / 1e11
        if kind == "assemble":
            return (self.num_predicted * genes + 1e6) / 1e8
        if kind == "de":  # every chunk sorts the controls
            return ((self.data.num_perturbed * share + self.data.num_controls) * genes + 1e6) / 1e8
        return self._score_units() + 0.01

    def memory(self, kind: Kind) -> int:
        """Bytes that a worker needs at most, itself included."""
        genes = self.data.num_genes
        group = self.data.num_cells * genes * CELL_BYTES
        if kind == "predict":
            return WORKER_BYTES + 3 * self.checkpoint_bytes + BATCH_CELLS * genes * 4 * 3
        if kind == "assemble":
            return WORKER_BYTES + BATCH_CELLS * genes * 4
        return WORKER_BYTES + group * (1 if kind == "de" else 2)

    def _score_units(self) -> float:
        """Both sides once (with DE made before, unless by cell type), and each side that options have scored anew."""
        scoring, data = self.score, self.data
        metrics = resolve(scoring.chosen)
        side = data.num_cells * data.num_genes / 1e8
        has_de = any(metric.family == "de" for metric in metrics)
        anew = side * (1.0 if has_de else READING)
        if any(metric.kind == "edistance" for metric in metrics):
            pairs = data.num_controls * (data.num_perturbed + data.num_controls / 2)
            energy = ENERGY * pairs * data.num_genes / 1e11
        else:
            energy = 0.0
        first = 2 * ((anew if scoring.by else side * READING) + energy)
        if scoring.metrics_only:
            return first
        on_counts = metrics[0].scale == "counts"
        times = (
            len(BASELINES) * data.has_training
            + (SCALE if on_counts else scoring.splits * scoring.ceiling)
            + CHECKS * (scoring.integrity == "full")
        )
        return first + times * (anew + energy)


def limit_seconds(kind: Kind, units: float) -> float:
    """How long a task may take before it is taken for hung: far beyond what a slow machine needs."""
    return max(LEAST_LIMIT, PATIENCE * (FIRST_GUESS[kind] * units + LOADING_SECONDS[kind]))


def estimate_seconds(
    units: Sequence[tuple[Kind, float]], rates: Mapping[str, tuple[float, int]], workers: int, threads: int = 1
) -> float:
    """Wall time of tasks `(kind, units)` on `workers` of `threads` cores, by the ledger's rates where it has some."""
    total = 0.0
    for kind, size in units:
        measured = rates.get(kind)
        total += measured[0] * size if measured else FIRST_GUESS[kind] * size / threads + LOADING_SECONDS[kind]
    return total / max(1, workers)
