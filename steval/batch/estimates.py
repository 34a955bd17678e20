"""How much memory and time a task takes: rough figures before anything ran, then the ledger's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steval.batch.jobs import Job, Kind

WORKER_BYTES = 700 * 2**20
"""A process with torch, AnnData and the compiled kernels loaded."""
CELL_BYTES = 3
"""Bytes in memory for each entry (cell × gene) of a group that is read: a fifth to a third are non-zero, 8 to 12 bytes each."""
BATCH_CELLS = 2048
"""Cells in the network at once, its intermediate values included."""
FIRST_GUESS: dict[Kind, float] = {"predict": 4.0, "assemble": 0.6, "de": 1.5, "score": 4.0}
"""Seconds per unit on one 2024 server core. A unit is 10⁸ entries (cells × genes) that the task reads or makes; for prediction
10¹¹ floating point operations."""
LOADING_SECONDS: dict[Kind, float] = {"predict": 1.5, "assemble": 0.5, "de": 0.5, "score": 5.0}
"""Of each task; scoring also loads training cells, makes baselines and draws a report."""


@dataclass(frozen=True)
class Sizes:
    """What the tasks of one job handle."""

    checkpoint_bytes: int
    num_predicted: int
    num_real: int
    num_genes: int
    threads: int

    @classmethod
    def of(cls, job: Job, num_real: int, num_genes: int, threads: int) -> "Sizes":
        """Sizes of a planned job."""
        return cls(job.checkpoint.num_bytes, job.num_cells, num_real, num_genes, threads)

    def units(self, kind: Kind, share: float = 1.0) -> float:
        """Size of a task that does `share` of its kind's work for the job."""
        if kind == "predict":
            flops = 2 * (self.checkpoint_bytes / 4) * self.num_predicted * share
            return (flops + 1e9) / 1e11
        cells = {"assemble": self.num_predicted, "de": self.num_real * max(share, 0.2)}.get(
            kind, self.num_real + self.num_predicted
        )
        return (cells * self.num_genes + 1e6) / 1e8

    def memory(self, kind: Kind) -> int:
        """Bytes that a worker needs at most, itself included."""
        group = self.num_real * self.num_genes * CELL_BYTES
        if kind == "predict":
            return WORKER_BYTES + 3 * self.checkpoint_bytes + BATCH_CELLS * self.num_genes * 4 * 3
        if kind == "assemble":
            return WORKER_BYTES + 2 * self.checkpoint_bytes + BATCH_CELLS * self.num_genes * 4
        return WORKER_BYTES + group * (1 if kind == "de" else 2)


def estimate_seconds(
    units: Sequence[tuple[Kind, float]], rates: Mapping[str, tuple[float, int]], workers: int
) -> float:
    """Wall time of tasks `(kind, units)` on `workers`, by the ledger's rates where it has some."""
    total = 0.0
    for kind, size in units:
        measured = rates.get(kind)
        total += measured[0] * size if measured else FIRST_GUESS[kind] * size + LOADING_SECONDS[kind]
    return total / max(1, workers)
