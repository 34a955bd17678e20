"""Differential expression of every perturbation against the control, with pdex 0.3.0's values and columns.

cell-eval 0.8.2 calls pdex with `mode="ref"`, `is_log1p=True`, `epsilon=0.0`: two-sided Mann–Whitney on lognorm values,
fold change of geometric means (expm1 of the mean), Benjamini–Hochberg within each perturbation. Controls are sorted once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from steval.evaluator.measure.groups import Group
from steval.evaluator.measure.rank_kernels import fold_changes, keep_sorted, pad_genes, percent_changes, rank_genes

SORTED_AT_ONCE = 1 << 20
"""Values sorted in one call; fits the second-level cache."""


@dataclass(frozen=True)
class SortedControls:
    """Non-zero control values of each gene, ascending."""

    num_cells: int
    starts: np.ndarray
    values: np.ndarray
    ties: np.ndarray
    """Σ (t³ − t) over blocks of equal non-zeros `[G]`."""
    natural_mean: np.ndarray


@dataclass(frozen=True)
class DifferentialExpression:
    """DE of P perturbations × G genes; arrays `[P, G]`, rows as `names`, columns as `genes`."""

    names: tuple[str, ...]
    genes: tuple[str, ...]
    memberships: np.ndarray
    """Cells of each perturbation `[P]`."""
    num_controls: int
    target_mean: np.ndarray
    reference_mean: np.ndarray
    """`[G]`, natural (count) space like `target_mean`."""
    statistic: np.ndarray
    p_value: np.ndarray
    epsilon: float = 0.0

    def log2_fold_change(self, row: int) -> np.ndarray:
        """`[G]` float64 of one perturbation; infinite where one side has no expression."""
        return fold_changes(self.target_mean[row], self.reference_mean, self.epsilon)

    def fdr(self, row: int) -> np.ndarray:
        """`[G]` float64 of one perturbation, corrected over its genes."""
        return benjamini_hochberg(self.p_value[row])

    def frame(self) -> pl.DataFrame:
        """pdex's table: one row per perturbation and gene, perturbations in order, genes in order."""
        num_perts, num_genes = self.p_value.shape
        rows = range(num_perts)
        reference = self.reference_mean
        codes = np.repeat(np.arange(num_perts, dtype=np.uint32), num_genes)
        return pl.DataFrame(
            {
                "target": pl.Series(list(self.names), dtype=pl.String).gather(codes),
                "feature": pl.Series(list(self.genes), dtype=pl.String).gather(
                    np.tile(np.arange(num_genes, dtype=np.uint32), num_perts)
                ),
                "target_mean": self.target_mean.ravel(),
                "ref_mean": np.tile(reference, num_perts),
                "target_membership": np.repeat(self.memberships.astype(np.int64), num_genes),
                "ref_membership": np.full(num_perts * num_genes, self.num_controls, dtype=np.int64),
                "log2_fold_change": _stacked([self.log2_fold_change(row) for row in rows]),
                "percent_change": _stacked(
                    [percent_changes(self.target_mean[row], reference, self.epsilon) for row in rows]
                ),
                "p_value": self.p_value.ravel(),
                "statistic": self.statistic.ravel(),
                "fdr": _stacked([self.fdr(row) for row in rows]),
            }
        )


def sort_controls(control: Group, pool: ThreadPoolExecutor) -> SortedControls:
    """Sort each gene's control values, once for all perturbations; `control.values` is sorted in place."""
    ties = np.zeros(len(control.starts) - 1)

    def sort(bounds: tuple[int, int]) -> None:
        padded = sorted_rows(control.values, control.starts, *bounds)
        keep_sorted(padded, control.starts, *bounds, control.values, ties)

    list(pool.map(sort, gene_chunks(control.starts)))
    return SortedControls(control.num_cells, control.starts, control.values, ties, control.natural_mean)


def rank_group(group: Group, controls: SortedControls) -> tuple[np.ndarray, np.ndarray]:
    """U and p of one perturbation against the controls, each `[G]` float64."""
    num_genes = len(group.starts) - 1
    statistic, p_value = np.empty(num_genes), np.empty(num_genes)
    for first, last in gene_chunks(group.starts):
        rank_genes(
            sorted_rows(group.values, group.starts, first, last),
            group.starts,
            first,
            last,
            group.num_cells,
            controls.values,
            controls.starts,
            controls.ties,
            controls.num_cells,
            statistic,
            p_value,
        )
    return statistic, p_value


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """False discovery rate of `p_values [G]`: `scipy.stats.false_discovery_control` operation by operation, as pdex has it.

    Its own, because loading scipy.stats takes longer than all corrections of a score, which otherwise does without it.
    """
    if len(p_values) <= 1:
        return p_values.copy()
    order = np.argsort(p_values)
    scaled = p_values[order] * (len(p_values) / np.arange(1, len(p_values) + 1, dtype=np.float64))
    descending = scaled[::-1]
    np.minimum.accumulate(descending, out=descending)
    result = np.empty_like(p_values)
    result[order] = scaled
    return np.clip(result, 0.0, 1.0)


def sorted_rows(values: np.ndarray, starts: np.ndarray, first: int, last: int) -> np.ndarray:
    """Values of genes `first` to `last`, a row each, ascending, the largest number there is behind."""
    width = int(np.diff(starts[first : last + 1]).max())
    padded = np.empty((last - first, width), dtype=values.dtype)
    largest = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    pad_genes(values, starts, first, last, padded, largest)
    padded.sort(axis=1)
    return padded


def gene_chunks(starts: np.ndarray) -> Sequence[tuple[int, int]]:
    """Ranges of genes whose padded values are sorted together."""
    counts = np.diff(starts)
    widest = max(1, int(counts.max(initial=0)))
    size = max(1, min(SORTED_AT_ONCE // widest, len(counts)))
    edges = [*range(0, len(counts), size), len(counts)]
    return list(pairwise(edges))


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows) if rows else np.empty(0)
