"""One pass over cells of counts: what is measured of each perturbation against the controls, and of halves of both.

The real cells are read once: their controls are sorted once, and the ranks of every half of every split follow from that order
(`count_kernels.rank_halves`). Memory holds the controls, and one perturbation for each thread; results are `[P, G]` arrays.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from steval.evaluator.cells.sides import Cells
from steval.evaluator.measure.count_kernels import (
    BLOCK,
    CODE_BITS,
    count_by_half,
    rank_halves,
    tie_terms_by_half,
)
from steval.evaluator.measure.count_rules import LEAST_CPM
from steval.evaluator.measure.counts import CountedGroup, Halves, Sums
from steval.evaluator.measure.de import gene_chunks, sorted_rows
from steval.evaluator.measure.rank_kernels import keep_sorted, rank_genes
from steval.evaluator.measure.scan import run_all

CODE_MASK = (1 << CODE_BITS) - 1


@dataclass(frozen=True)
class CountTable:
    """Perturbations' cells against control cells; arrays `[P, G]` over all genes or `[P, K]` over the tested ones."""

    names: tuple[str, ...]
    """Sorted, the control left out."""
    num_cells: np.ndarray
    sums: np.ndarray
    """Counts of each gene `[P, G]` float64."""
    correction: np.ndarray
    """Sampling correction of each perturbation's profile `[P]` (`jackknife`)."""
    cpm: np.ndarray
    """Mean CPM of the tested genes `[P, K]`."""
    p_value: np.ndarray
    """Two-sided Mann–Whitney against the controls `[P, K]`."""
    statistic: np.ndarray
    """U `[P, K]`; empty for halves of cells."""
    columns: np.ndarray
    """Places of the tested genes among all `[K]`."""
    control_cells: int
    control_sums: np.ndarray
    """`[G]` float64."""
    control_correction: float
    control_cpm: np.ndarray
    """`[K]`."""


@dataclass(frozen=True)
class RankedControls:
    """Control cells added up and sorted, ready to rank perturbations against; made by `rank_controls`."""

    sums: Sums
    correction: float
    half_correction: np.ndarray
    columns: np.ndarray
    """Genes that are ranked `[K]`: those tested in all cells or in any half."""
    column: np.ndarray
    """Each gene's place among them `[G]`, -1 for none."""
    starts: np.ndarray
    keys: np.ndarray
    ties: np.ndarray
    """Σ (t³ − t) over blocks of equal non-zeros `[K]`."""
    codes: np.ndarray
    """Of the cell of each key; empty without splits, like all that follows."""
    blocks: np.ndarray
    block_starts: np.ndarray
    half_ties: np.ndarray
    tested_halves: np.ndarray
    """Whether a half's controls let a gene be tested, `[H, K]`."""
    halves: Halves | None

    @property
    def tested(self) -> np.ndarray:
        """Places among `columns` of the genes that all control cells let be tested."""
        return np.flatnonzero(self.sums.cpm[self.columns] > LEAST_CPM)


def rank_controls(side: Cells, control: str, threads: int, halves: Halves | None = None) -> RankedControls:
    """Read, add up and sort the control cells of `side`."""
    group = CountedGroup(side, control, Lock(), halves)
    sums = group.sums()
    correction, half_correction = group.correct(sums)
    expressed = (sums.cpm > LEAST_CPM) | (sums.half_cpm > LEAST_CPM).any(axis=1)
    columns = np.flatnonzero(expressed)
    column = np.full(len(expressed), -1)
    column[columns] = np.arange(len(columns))
    keys, starts = group.keys(sums, column)
    ties = np.zeros(len(columns))
    codes = np.zeros(0 if halves is None else len(keys), dtype=np.uint8)

    def sort(bounds: tuple[int, int]) -> None:
        rows = sorted_rows(keys, starts, *bounds)
        if halves is not None:
            first, last = bounds
            is_key = np.arange(rows.shape[1]) < np.diff(starts[first : last + 1])[:, None]
            codes[starts[first] : starts[last]] = (rows & CODE_MASK)[is_key]
            rows >>= CODE_BITS
        keep_sorted(rows, starts, *bounds, keys, ties)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sort, gene_chunks(starts)))
    blocks, block_starts, half_ties = _by_half(keys, codes, starts, halves)
    return RankedControls(
        sums, correction, half_correction, columns, column, starts, keys, ties, codes, blocks, block_starts, half_ties,
        (sums.half_cpm[columns] > LEAST_CPM).T, halves,
    )  # fmt: skip


def _by_half(
    keys: np.ndarray, codes: np.ndarray, starts: np.ndarray, halves: Halves | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if halves is None:
        return np.empty((0, 0), np.int32), np.empty(0, np.int64), np.empty((0, 0))
    numbers = -(-np.diff(starts) // BLOCK) + 1
    block_starts = np.concatenate([[0], np.cumsum(numbers)])
    blocks = np.empty((block_starts[-1], halves.num_halves), dtype=np.int32)
    terms = np.zeros((len(starts) - 1, halves.num_halves))
    count_by_half(codes, starts, halves.members, blocks, block_starts)
    tie_terms_by_half(keys, codes, starts, halves.members, terms)
    return blocks, block_starts, terms


def scan_counts(
    side: Cells, names: Sequence[str], controls: RankedControls, threads: int, whole: bool = True
) -> CountTable:
    """Read the cells of the perturbations `names` of `side` once and measure them against `controls`."""
    return _scan(side, names, controls, threads, None, whole)[0]


def scan_halves(
    side: Cells, names: Sequence[str], controls: RankedControls, threads: int
) -> tuple[CountTable, tuple[CountTable, ...]]:
    """As `scan_counts`, and each half of the splits that `controls` were sorted for, against the same half of the controls."""
    return _scan(side, names, controls, threads, controls.halves, True)


def _scan(
    side: Cells, names: Sequence[str], controls: RankedControls, threads: int, halves: Halves | None, whole: bool
) -> tuple[CountTable, tuple[CountTable, ...]]:
    num_halves = 0 if halves is None else halves.num_halves
    all_cells = _Rows(len(names), side.num_genes, len(controls.columns))
    of_halves = [_Rows(len(names), side.num_genes, len(controls.columns)) for _ in range(num_halves)]
    lock = Lock()

    def work(position: int) -> None:
        group = CountedGroup(side, names[position], lock, halves, whole)
        sums = group.sums()
        correction, half_correction = group.correct(sums)
        keys, starts = group.keys(sums, controls.column)
        statistic, p_value, half_p = _rank(keys, starts, sums, controls, halves)
        cpm = sums.cpm[controls.columns]
        all_cells.set(position, sums.num_cells, sums.counts, correction, cpm, p_value)
        all_cells.statistic[position] = statistic
        for half, rows in enumerate(of_halves):
            cpm = sums.half_cpm[controls.columns, half]
            rows.set(
                position, sums.half_cells[half], sums.half_counts[:, half], half_correction[half], cpm, half_p[half]
            )

    with ThreadPoolExecutor(threads) as pool:
        run_all(pool, work, len(names), f"{side.name} cells")
    own = controls.sums
    table = all_cells.table(
        names, controls.columns, controls.tested, own.num_cells, own.counts, controls.correction, own.cpm
    )
    tables = tuple(
        rows.table(
            names, controls.columns, np.flatnonzero(controls.tested_halves[half]), own.half_cells[half],
            own.half_counts[:, half], controls.half_correction[half], own.half_cpm[:, half],
        )
        for half, rows in enumerate(of_halves)
    )  # fmt: skip
    return table, tables


class _Rows:
    """The arrays of a table while its rows are found."""

    def __init__(self, num_rows: int, num_genes: int, num_ranked: int):
        self.num_cells = np.zeros(num_rows, dtype=np.int64)
        self.sums = np.zeros((num_rows, num_genes))
        self.correction = np.zeros(num_rows)
        self.cpm = np.zeros((num_rows, num_ranked))
        self.p_value = np.ones((num_rows, num_ranked))
        self.statistic = np.zeros((num_rows, num_ranked))

    def set(
        self, row: int, num_cells: int, sums: np.ndarray, correction: float, cpm: np.ndarray, p_value: np.ndarray
    ) -> None:
        self.num_cells[row], self.sums[row], self.correction[row] = num_cells, sums, correction
        self.cpm[row], self.p_value[row] = cpm, p_value

    def table(
        self, names: Sequence[str], ranked: np.ndarray, tested: np.ndarray, control_cells: int,
        control_sums: np.ndarray, control_correction: float, control_cpm: np.ndarray,
    ) -> CountTable:  # fmt: skip
        """The table of the perturbations that have cells, over the genes at places `tested` of the `ranked` ones."""
        present = np.flatnonzero(self.num_cells > 0)
        here = np.ix_(present, tested)
        return CountTable(
            tuple(names[row] for row in present), self.num_cells[present], self.sums[present], self.correction[present],
            self.cpm[here], self.p_value[here], self.statistic[here], ranked[tested], int(control_cells),
            np.ascontiguousarray(control_sums), float(control_correction), control_cpm[ranked[tested]],
        )  # fmt: skip


def _rank(
    keys: np.ndarray, starts: np.ndarray, sums: Sums, controls: RankedControls, halves: Halves | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U and p of each ranked gene `[K]`, and p of each half `[H, K]`."""
    num_ranked, num_halves = len(controls.columns), 0 if halves is None else halves.num_halves
    statistic, p_value, half_p = np.empty(num_ranked), np.empty(num_ranked), np.ones((num_halves, num_ranked))
    numbers = np.diff(starts)
    for first, last in gene_chunks(starts):
        rows = sorted_rows(keys, starts, first, last)
        if halves is not None:
            codes = (rows & CODE_MASK).astype(np.uint8)
            rows >>= CODE_BITS
            rank_halves(
                rows, codes, numbers[first:last], first, sums.half_cells, controls.keys, controls.codes, controls.starts,
                controls.blocks, controls.block_starts, controls.half_ties, controls.sums.half_cells, halves.members,
                controls.tested_halves, half_p,
            )  # fmt: skip
        rank_genes(
            rows, starts, first, last, sums.num_cells, controls.keys, controls.starts, controls.ties,
            controls.sums.num_cells, statistic, p_value,
        )  # fmt: skip
    return statistic, p_value, half_p
