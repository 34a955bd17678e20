"""Two tables of counts on one grid: what the metrics on counts read, a prediction beside real cells or half beside half."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steval.errors import EvaluationError
from steval.evaluator.measure.counts import bulk_profiles
from steval.evaluator.measure.de import benjamini_hochberg
from steval.wording import listed

if TYPE_CHECKING:
    from steval.evaluator.measure.count_scan import CountTable

EPSILON = 1e-9
"""Added to both mean CPM of a fold change."""


@dataclass(frozen=True)
class TestedGenes:
    """Differential expression of one side, `[P, K]` float64 on the comparison's grid; NaN where a gene is not tested."""

    fdr: np.ndarray
    """Corrected within each perturbation over its tested genes."""
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    present: np.ndarray
    """Whether a gene is tested on this side `[K]`."""

    def significant(self, threshold: float) -> np.ndarray:
        """Mask `[P, K]` of FDR under `threshold`."""
        return self.fdr < threshold


def own_genes(perturbations: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """The place of each perturbation's own gene among `genes` `[P]`; -1 where it is not measured.

    An `EvaluationError` where none is: labels and genes do not speak of the same things then, and leaving out nothing
    would score what is known beforehand.
    """
    place = {gene: index for index, gene in enumerate(genes)}
    found = np.array([place.get(name, -1) for name in perturbations])
    if (found < 0).all():
        raise EvaluationError(
            "no perturbation is named after a measured gene, so that its own gene could be left out; this profile scores "
            f"perturbations of genes. Perturbations are {listed(perturbations, 5)}, genes {listed(genes, 5)}: use one kind of name "
            "in both"
        )
    return found


class CountInputs:
    """Everything the metrics on counts read; rows are `perturbations` (sorted), pure functions of the two tables."""

    def __init__(self, real: "CountTable", pred: "CountTable", genes: Sequence[str]):
        if real.names != pred.names:
            different = sorted(set(real.names) ^ set(pred.names))
            raise EvaluationError(f"the two sides hold different perturbations: {', '.join(different[:10])}")
        self.real, self.pred = real, pred
        self.perturbations = real.names
        self.genes = tuple(genes)
        self.columns = np.union1d(real.columns, pred.columns)
        """Genes that are tested on either side, by place among all `[K]`."""

    @cached_property
    def own_gene(self) -> np.ndarray:
        """The place of each perturbation's own gene among all genes `[P]`; -1 where it is not measured.

        `EvaluationError` where none is, as `own_genes`.
        """
        return own_genes(self.perturbations, self.genes)

    @cached_property
    def own_tested(self) -> np.ndarray:
        """The place of each perturbation's own gene on the grid of tested genes `[P]`; -1 where the real side does not test it."""
        place = {int(column): index for index, column in enumerate(self.columns)}
        tested = set(self.real.columns.tolist())
        found = np.array([place[gene] if gene in tested else -1 for gene in self.own_gene.tolist()])
        if (found < 0).all():
            raise EvaluationError(
                "no perturbation's own gene is among those that the control cells express enough to be tested (mean CPM above 5)"
            )
        return found

    @cached_property
    def real_profiles(self) -> np.ndarray:
        """log1p of gene sums at a total of 50,000 `[P, G]`."""
        return bulk_profiles(self.real.sums)

    @cached_property
    def pred_profiles(self) -> np.ndarray:
        """As `real_profiles`."""
        return bulk_profiles(self.pred.sums)

    @cached_property
    def real_control(self) -> np.ndarray:
        """Profile of the real side's controls `[G]`."""
        return bulk_profiles(self.real.control_sums[None, :])[0]

    @cached_property
    def pred_control(self) -> np.ndarray:
        """Profile of the controls that the prediction is compared with: the measured ones, or those of its half."""
        return bulk_profiles(self.pred.control_sums[None, :])[0]

    @cached_property
    def real_de(self) -> TestedGenes:
        """Differential expression of the real side."""
        return tested_genes(self.real, self.columns)

    @cached_property
    def pred_de(self) -> TestedGenes:
        """Differential expression of the prediction."""
        return tested_genes(self.pred, self.columns)

    def without_own(self, mask: np.ndarray) -> np.ndarray:
        """`mask [P, K]` with each perturbation's own gene taken out."""
        result = mask.copy()
        rows = np.flatnonzero(self.own_tested >= 0)
        result[rows, self.own_tested[rows]] = False
        return result

    @cached_property
    def name_order(self) -> np.ndarray:
        """The rank of each tested gene's name in alphabetical order `[K]`."""
        names = np.array([self.genes[column].encode() for column in self.columns], dtype=object)
        order = np.empty(len(names), dtype=np.int64)
        order[np.argsort(names, kind="stable")] = np.arange(len(names))
        return order

    def by_name(self, values: np.ndarray) -> dict[str, float]:
        """Values `[P]` by perturbation; those that are NaN are left out."""
        return {
            name: float(value) for name, value in zip(self.perturbations, values, strict=True) if not np.isnan(value)
        }


def tested_genes(table: "CountTable", columns: np.ndarray) -> TestedGenes:
    """Differential expression of a table, its genes put where `columns` has them."""
    fdr = np.stack([benjamini_hochberg(row) for row in table.p_value]) if len(table.names) else table.p_value
    change = np.log2((table.cpm + EPSILON) / (table.control_cpm + EPSILON))
    places = np.searchsorted(columns, table.columns)
    present = np.zeros(len(columns), dtype=bool)
    present[places] = True
    if present.all():
        return TestedGenes(fdr, change, table.p_value, present)
    grids = []
    for values in (fdr, change, table.p_value):
        grid = np.full((len(table.names), len(columns)), np.nan)
        grid[:, places] = values
        grids.append(grid)
    return TestedGenes(grids[0], grids[1], grids[2], present)
