"""What quality.py predicts: lognorm cells of a screen, with the perturbations of one context that validate and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import write_anndata
from steval.data.cells.record import steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.evaluator.heldout import HeldOut
from steval.workflows.checkpoints.calibration import HeldOutPairs

CONTROL = "non-targeting"
TARGET_SUM = 1e4
NUM_TEST, NUM_VALIDATION, NUM_UNSEEN = 15, 8, 10
THP1_VALIDATION = ("CUL3", "IFNGR2", "IRF1", "STAT3")
THP1_TEST = (
    *("ATF2", "BRD4", "CAV1", "CD86", "IFNGR1", "IRF7"),
    *("JAK2", "MARCH8", "NFKBIA", "SMAD4", "STAT1", "STAT2"),
)


@dataclass(frozen=True)
class Task:
    """Lognorm cells with one context of which some perturbations validate and some test."""

    name: str
    cells: ad.AnnData
    columns: Columns
    target_sum: float
    context: str
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    """Perturbations that no context trains on."""

    @property
    def labels(self) -> np.ndarray:
        return self.cells.obs[self.columns.perturbation].astype(str).to_numpy()

    @property
    def contexts(self) -> np.ndarray:
        return self.cells.obs[self.columns.cell_type].astype(str).to_numpy()

    def part(self, names: Sequence[str], context: str | None = None) -> ad.AnnData:
        """Cells of `names` in a context with its controls."""
        here = self.contexts == (context or self.context)
        return self.cells[here & np.isin(self.labels, [CONTROL, *names])]

    def training(self) -> ad.AnnData:
        """Everything but what validates and tests, and unseen perturbations."""
        held = (self.contexts == self.context) & np.isin(self.labels, [*self.validation, *self.test])
        return self.cells[~(held | np.isin(self.labels, self.unseen))]

    def pairs(self, names: Sequence[str], baseline: np.ndarray, context: str | None = None) -> HeldOutPairs:
        """`names` of a context as held-out pairs, every cell of them."""
        part = self.part(names, context)
        labels, matrix = part.obs[self.columns.perturbation].astype(str).to_numpy(), sp.csr_matrix(part.X)
        controls = matrix[labels == CONTROL]
        real = HeldOut(controls, {name: matrix[labels == name] for name in names}, list(part.var_names))
        return HeldOutPairs(
            context or self.context, real, controls, real.mean_baseline(baseline), self.target_sum, hidden=tuple(names)
        )


def screen_task(path: Path, number: int, unseen: bool = False) -> Task:
    """Context and held-out perturbations of a screen by its place in the list; `unseen`: ten are measured nowhere."""
    cells, generator = read_lognorm(path, TARGET_SUM), np.random.default_rng(1000 + number)
    contexts = sorted(set(cells.obs["cell_type"].astype(str)))
    names = sorted(set(cells.obs["target_gene"].astype(str)) - {CONTROL})
    chosen = tuple(generator.permutation(names).tolist())
    target = contexts[number % len(contexts)]
    if unseen:
        return Task(path.stem, cells, Columns(), TARGET_SUM, target, (), (), chosen[:NUM_UNSEEN])
    test, validation = chosen[:NUM_TEST], chosen[NUM_TEST : NUM_TEST + NUM_VALIDATION]
    return Task(path.stem, cells, Columns(), TARGET_SUM, target, validation, test)


def kang_tasks(path: Path) -> list[Task]:
    """Each cell type with at least 40 cells on each side held out, the others train; a change by IFN-β alone."""
    cells = read_lognorm(path, 2000.0)
    sizes = pd.crosstab(cells.obs["cell_type"], cells.obs["target_gene"])
    types = sorted(sizes.index[(sizes >= 40).all(axis=1)])
    cells = cells[cells.obs["cell_type"].isin(types)].copy()
    return [Task(f"kang-{name}", cells, Columns(), 2000.0, name, (), ("IFNB1",)) for name in types]


def thp1_task(path: Path) -> Task:
    """docs/quality.md; its test perturbations are reported and decide nothing."""
    counts = ad.read_h5ad(path)
    counts = counts[np.asarray(counts.X.sum(axis=1)).ravel() >= 20].copy()
    cells = to_lognorm(counts, 200.0)
    columns = Columns(cell_type="replicate", batch=None)
    return Task("thp1", cells, columns, 200.0, "rep_2", THP1_VALIDATION, THP1_TEST)


def read_lognorm(path: Path, target_sum: float) -> ad.AnnData:
    return to_lognorm(ad.read_h5ad(path), target_sum)


def to_lognorm(counts: ad.AnnData, target_sum: float) -> ad.AnnData:
    cells = ad.AnnData(lognorm(sp.csr_matrix(counts.X), target_sum), obs=counts.obs, var=counts.var[[]])
    cells.obs = cells.obs.astype(str)
    return cells


def write_task(task: Task, path: Path) -> None:
    """The task's cells as a file for `steval finetune`, unless it is there."""
    if path.exists():
        return
    cells = task.cells.copy()
    cells.uns["steval"] = steval_record(
        made_by="benchmark", scale="lognorm", target_sum=task.target_sum, columns=task.columns
    )
    write_anndata(cells, path)
