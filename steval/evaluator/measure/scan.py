"""One pass over one side: each perturbation is read once, and its means, ranks and distances are computed from that reading.

Memory holds the control, and one perturbation for each thread; results are `[P, G]` arrays.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import Cells
from steval.evaluator.measure.de import DifferentialExpression
from steval.evaluator.measure.de_tables import REQUIRED
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.measure.groups import read_group
from steval.logs import progress_bar
from steval.wording import listed


@dataclass(frozen=True)
class Needs:
    """What of one side is asked for, beside the mean expression."""

    means: bool = True
    de: bool = False
    epsilon: float = 0.0
    energy: bool = False
    """Energy distances on X."""


@dataclass(frozen=True)
class SideTables:
    """What the metrics need of one side."""

    names: tuple[str, ...]
    """Sorted, the control among them."""
    means: np.ndarray
    """Mean expression `[P+1, G]` float64."""
    single: bool
    """Whether the cells are float32: cell-eval then works in float32 from the means on."""
    de: DifferentialExpression | None
    energy: np.ndarray | None
    """Energy distance of each perturbation `[P]`, control left out of `names`."""

    @property
    def pseudobulk(self) -> np.ndarray:
        """The means in the precision in which cell-eval holds them."""
        return self.means.astype(np.float32) if self.single else self.means


def scan(
    side: Cells, control: str, genes: Sequence[str], needs: Needs, threads: int, engine: Engine = HOST
) -> SideTables:
    """Read every group of `side` once and compute what `needs` says; ranks and distances on `engine`."""
    names = tuple(side.groups)
    perturbed = [name for name in names if name != control]
    lock = Lock()
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, user_api="blas"):
        reference = read_group(side, control, lock, keep_matrix=needs.energy)
        ranks = engine.ranks(reference, pool) if needs.de else None
        with threadpool_limits(threads, user_api="blas"):
            distances = engine.distances(reference.matrix) if reference.matrix is not None else None
        means = np.zeros((len(names), len(genes)))
        means[names.index(control)] = reference.mean
        shape = (len(perturbed), len(genes)) if needs.de else (0, 0)
        statistic, p_value = np.empty(shape), np.empty(shape)
        target_mean = np.empty(shape, dtype=reference.natural_mean.dtype)
        energy = np.empty(len(perturbed))

        def work(position: int) -> None:
            group = read_group(side, perturbed[position], lock, keep_matrix=distances is not None)
            means[names.index(group.name)] = group.mean
            if ranks is not None:
                statistic[position], p_value[position] = ranks.rank(group)
                target_mean[position] = group.natural_mean
            if distances is not None and group.matrix is not None:
                energy[position] = distances.energy(group.matrix)

        run_all(pool, work, len(perturbed), f"{side.name} cells")
    de = None
    if needs.de:
        sizes = np.array([len(side.groups[name]) for name in perturbed])
        de = DifferentialExpression(
            tuple(perturbed),
            tuple(genes),
            sizes,
            reference.num_cells,
            target_mean,
            reference.natural_mean,
            statistic,
            p_value,
            needs.epsilon,
        )
    single = reference.values.dtype == np.float32
    return SideTables(names, means, single, de, energy if needs.energy else None)


def de_chunk(
    pair: Pair, which: Literal["pred", "real"], perturbations: Sequence[str], threads: int = 1
) -> pl.DataFrame:
    """pdex's table, the columns that scoring reads, of `perturbations` against the controls of one side.

    For work that is divided over processes or machines: the false discovery rate is corrected within each perturbation,
    so tables of chunks put together equal the table of the whole; hand them to `score(de_pred=..., de_real=...)`.
    """
    side = pair.real if which == "real" else pair.stored_pred
    unknown = sorted(set(perturbations) - set(pair.perturbations))
    if unknown:
        raise EvaluationError(f"the {side.name} cells hold no perturbation {listed(unknown)}")
    groups = {name: side.groups[name] for name in (*perturbations, pair.control)}
    part = side.regrouped(groups, f"{side.subset}/{','.join(sorted(perturbations))}")
    de = scan(part, pair.control, pair.genes, Needs(de=True), threads).de
    assert de is not None
    return de.frame().select(REQUIRED)


def run_all(pool: ThreadPoolExecutor, work: Callable[[int], None], count: int, description: str) -> None:
    """`work(0) … work(count - 1)` on the pool, with a bar; the first error stops what has not begun and is raised."""
    futures = [pool.submit(work, position) for position in range(count)]
    try:
        with progress_bar(count, description, "perturbation") as bar:
            for future in futures:
                future.result()
                bar.update()
    finally:
        for future in futures:
            future.cancel()
