"""Generated screens of counts with known effects: pairs of real and predicted cells for the profile vcc2026."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

CONTROL = "non-targeting"


@dataclass(frozen=True)
class CountScreen:
    """A screen's law; `cells(...)` draws a side from it."""

    num_perturbations: int = 5
    num_genes: int = 120
    affected: int = 30
    """Genes that a perturbation changes beside its own; the first perturbation changes none."""
    depth: float = 2500.0
    spread: float = 0.35
    """Of the cells' log depths."""
    size: float = 1.0
    """Of the log fold changes."""
    seed: int = 0
    numbers: Mapping[int, int] = field(default_factory=dict)
    """Cells of single perturbations, by place."""
    skew: float = 0.5
    """Shape of the genes' expression: the smaller, the more genes are hardly expressed."""

    @property
    def genes(self) -> list[str]:
        return [f"g{index:03d}" for index in range(self.num_genes)]

    @property
    def base(self) -> np.ndarray:
        """Shares of a control cell's counts `[G]`."""
        shares = np.random.default_rng(self.seed).gamma(self.skew, 1, self.num_genes)
        return shares / shares.sum()

    @property
    def targets(self) -> list[str]:
        """Perturbations, named after well-expressed genes."""
        best = np.argsort(-self.base)[: max(self.num_genes // 3, self.num_perturbations)]
        places = np.random.default_rng(self.seed + 1).choice(best, self.num_perturbations, replace=False)
        return [self.genes[place] for place in places]

    def effect(self, place: int) -> np.ndarray:
        """Log fold change of each gene `[G]` under a perturbation."""
        generator = np.random.default_rng([self.seed, place])
        change = np.zeros(self.num_genes)
        if place:
            chosen = generator.choice(self.num_genes, self.affected, replace=False)
            change[chosen] = generator.normal(0, self.size, self.affected)
            change[self.genes.index(self.targets[place])] = -2.0
        return change

    def draw(self, change: np.ndarray, number: int, generator: np.random.Generator, depth: float = 1.0) -> np.ndarray:
        """Counts `[number, G]` of cells whose log fold changes are `change`."""
        shares = self.base * np.exp(change)
        totals = depth * self.depth * np.exp(self.spread * generator.normal(size=number))
        noise = generator.gamma(5, 1 / 5, (number, self.num_genes))
        return generator.poisson(totals[:, None] * (shares / shares.sum()) * noise)

    def cells(
        self,
        seed: int,
        *,
        factor: float = 1.0,
        each: int = 30,
        controls: int = 80,
        depth: float = 1.0,
        order: bool = False,
    ) -> ad.AnnData:
        """Cells of all perturbations, effects times `factor`, and of the controls; in random order unless `order`."""
        generator = np.random.default_rng([self.seed, 7, seed])
        blocks, labels = [], []
        for place, target in enumerate(self.targets):
            number = self.numbers.get(place, each)
            blocks.append(self.draw(factor * self.effect(place), number, generator, depth))
            labels += [target] * number
        blocks.append(self.draw(np.zeros(self.num_genes), controls, generator, depth))
        labels += [CONTROL] * controls
        made = counts_of(np.vstack(blocks), labels, self.genes)
        return made if order else made[generator.permutation(made.n_obs)].copy()

    def changed(
        self, cells: ad.AnnData, change: Callable[[np.ndarray, str, np.random.Generator], np.ndarray]
    ) -> ad.AnnData:
        """`cells` with each perturbation's counts `[n, G]` passed through `change(counts, name, generator)`."""
        generator = np.random.default_rng(self.seed + 99)
        labels = cells.obs["target_gene"].astype(str).to_numpy()
        dense = cells.X.toarray()
        for name in self.targets:
            rows = labels == name
            dense[rows] = change(dense[rows], name, generator)
        made = cells.copy()
        made.X = sp.csr_matrix(dense.astype(np.float32))
        return made


def counts_of(counts: np.ndarray, labels: list[str], genes: list[str]) -> ad.AnnData:
    """Counts `[n, G]` as cells."""
    obs = pd.DataFrame({"target_gene": pd.Categorical(labels)}, index=[f"cell{row}" for row in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))


def without_controls(cells: ad.AnnData) -> ad.AnnData:
    """As submissions are."""
    return cells[(cells.obs["target_gene"] != CONTROL).to_numpy()].copy()


def of_controls(screen: CountScreen, real: ad.AnnData, seed: int = 0) -> ad.AnnData:
    """A prediction whose perturbed cells are drawn from the measured controls."""
    pool = real[(real.obs["target_gene"] == CONTROL).to_numpy()].X.toarray()
    return screen.changed(real, lambda cells, _, generator: pool[generator.choice(len(pool), len(cells))])


def _renamed(cells: ad.AnnData, old: str, new: str) -> ad.AnnData:
    made = cells.copy()
    made.obs["target_gene"] = pd.Categorical(
        [new if name == old else name for name in made.obs["target_gene"].astype(str)]
    )
    return made


def _even(cells: ad.AnnData) -> ad.AnnData:
    """Every count capped at 20 and every cell brought to the same total in one gene: many equal values."""
    dense = np.minimum(cells.X.toarray(), 20)
    dense[:, 0] = 2000 - dense[:, 1:].sum(axis=1)
    made = cells.copy()
    made.X = sp.csr_matrix(dense.astype(np.float32))
    return made


def _without_genes(cells: ad.AnnData) -> ad.AnnData:
    dense = cells.X.toarray()
    dense[:, [3, 50, 119]] = 0
    made = cells.copy()
    made.X = sp.csr_matrix(dense)
    return made


def _contexts(seed: int, factor: float) -> ad.AnnData:
    parts = {}
    for name, law in (("A", CountScreen(seed=31)), ("B", CountScreen(seed=32, depth=4000.0))):
        cells = law.cells(seed, factor=factor)
        other = CountScreen(seed=31)
        names = {**dict(zip(law.targets, other.targets, strict=True)), CONTROL: CONTROL}
        cells.obs["target_gene"] = pd.Categorical([names[label] for label in cells.obs["target_gene"].astype(str)])
        cells.obs["context"] = name
        parts[name] = cells
    joined = ad.concat(parts, index_unique="-")
    joined.obs["target_gene"] = pd.Categorical(joined.obs["target_gene"].astype(str))
    return joined


def pairs() -> dict[str, tuple[ad.AnnData, ad.AnnData]]:
    """Pairs (predicted, real) by what is special about them; all predictions hold control cells, which cell-eval2 asks for."""
    plain = CountScreen()
    few = CountScreen(affected=4, seed=3)
    many = CountScreen(affected=90, seed=4, size=1.5)
    uneven = CountScreen(seed=5, numbers={0: 9, 1: 44, 2: 17})
    one = CountScreen(seed=6, numbers={2: 1})
    real, pred = plain.cells(0), plain.cells(1, factor=0.7)
    other = plain.targets[1]
    return {
        "plain": (pred, real),
        "few": (few.cells(1, factor=0.7), few.cells(0)),
        "many": (many.cells(1, factor=0.7), many.cells(0)),
        "uneven": (uneven.cells(1, factor=0.7), uneven.cells(0)),
        "one cell": (one.cells(1, factor=0.7), one.cells(0)),
        "ties": (_even(pred), _even(real)),
        "silent genes": (_without_genes(pred), _without_genes(real)),
        "target not measured": (_renamed(pred, other, "elsewhere"), _renamed(real, other, "elsewhere")),
        "identical": (real.copy(), real),
        "controls": (of_controls(plain, real), real),
        "wrong depth": (plain.cells(1, factor=0.7, depth=3.0), real),
        "no effect": (plain.cells(1, factor=0.0), plain.cells(0, factor=0.0)),
        "two contexts": (_contexts(1, 0.7), _contexts(0, 1.0)),
    }


KEPT = ("plain", "few", "ties", "controls")
"""Pairs whose values by cell-eval2 are kept with the tests."""
