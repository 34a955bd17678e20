"""Synthetic Perturb-seq cells with known effects: negative binomial counts, any number of genes up to the challenge's 18,080."""

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.record import KEY, steval_record
from steval.data.columns import Columns

CHALLENGE_GENES = 18_080
BLOCK_CELLS = 256
KNOCK_DOWN = 0.2
"""Share of the target gene's expression that remains."""


@dataclass(frozen=True)
class SyntheticScreen:
    """Cells (raw counts) and the truth behind them.

    `effects`: long table of cell_type, perturbation, gene, log_fold_change (natural log, non-zero entries only).
    """

    cells: ad.AnnData
    effects: pd.DataFrame


def generate(
    *,
    num_genes: int = 1000,
    num_perturbations: int = 10,
    cells_per_perturbation: int = 100,
    num_controls: int = 500,
    cell_types: Sequence[str] = ("synthetic",),
    shared_effect: float = 0.8,
    affected_genes: tuple[int, int] = (20, 150),
    effect_size: float = 0.8,
    counts_per_cell: float = 20_000.0,
    num_batches: int = 4,
    seed: int = 0,
) -> SyntheticScreen:
    """Draw a screen whose right answers are known.

    Each perturbation knocks its own target gene down to 20 % and changes a number of other genes by normal log fold changes of
    standard deviation `effect_size`; the effects in each cell type correlate by `shared_effect` with a common effect.
    Returns counts CSR float32 `[cells, num_genes]`, rows shuffled.
    """
    rng = np.random.default_rng(seed)
    genes = np.array([f"GENE{index:05d}" for index in range(num_genes)])
    abundance = rng.lognormal(0.0, 1.5, num_genes)
    inverse_dispersion = rng.uniform(2.0, 8.0, num_genes)
    expressed = np.argsort(-abundance)[: max(num_perturbations, num_genes // 2)]
    targets = np.sort(rng.choice(expressed, num_perturbations, replace=False))
    common = [_draw_effect(rng, expressed, target, num_genes, affected_genes, effect_size) for target in targets]
    blocks, labels, truth = [], [], []
    for cell_type in cell_types:
        own_abundance = abundance * rng.lognormal(0.0, 0.3 if len(cell_types) > 1 else 0.0, num_genes)
        blocks.append(_draw_counts(rng, num_controls, own_abundance, inverse_dispersion, counts_per_cell))
        labels += [(Columns().control, cell_type)] * num_controls
        for target, effect in zip(targets, common, strict=True):
            own = _vary(rng, effect, shared_effect if len(cell_types) > 1 else 1.0, effect_size)
            own[target] = np.log(KNOCK_DOWN)
            perturbed = own_abundance * np.exp(own)
            blocks.append(_draw_counts(rng, cells_per_perturbation, perturbed, inverse_dispersion, counts_per_cell))
            labels += [(genes[target], cell_type)] * cells_per_perturbation
            changed = np.flatnonzero(own)
            where = {"cell_type": cell_type, "perturbation": genes[target]}
            truth.append(pd.DataFrame({**where, "gene": genes[changed], "log_fold_change": own[changed]}))
    return SyntheticScreen(_assemble(rng, blocks, labels, genes, num_batches), pd.concat(truth, ignore_index=True))


def _draw_effect(
    rng: np.random.Generator, expressed: np.ndarray, target: int, num_genes: int, affected: tuple[int, int], size: float
) -> np.ndarray:
    effect = np.zeros(num_genes)
    count = min(int(rng.integers(affected[0], affected[1] + 1)), len(expressed))
    effect[rng.choice(expressed, count, replace=False)] = rng.normal(0.0, size, count)
    effect[target] = np.log(KNOCK_DOWN)
    return effect


def _vary(rng: np.random.Generator, effect: np.ndarray, correlation: float, size: float) -> np.ndarray:
    changed = effect != 0
    noise = rng.normal(0.0, size, len(effect)) * changed
    return correlation * effect + np.sqrt(max(0.0, 1.0 - correlation**2)) * noise


def _draw_counts(
    rng: np.random.Generator, num_cells: int, abundance: np.ndarray, inverse_dispersion: np.ndarray, mean_total: float
) -> sp.csr_matrix:
    share = abundance / abundance.sum()
    totals = rng.lognormal(np.log(mean_total) - 0.045, 0.3, num_cells)
    blocks = []
    for start in range(0, num_cells, BLOCK_CELLS):
        size = min(BLOCK_CELLS, num_cells - start)
        rate = rng.standard_gamma(inverse_dispersion.astype(np.float32), size=(size, len(share)), dtype=np.float32)
        rate *= (share / inverse_dispersion).astype(np.float32)
        rate *= totals[start : start + size, None].astype(np.float32)
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sp.vstack(blocks, format="csr")


def _assemble(
    rng: np.random.Generator,
    blocks: list[sp.csr_matrix],
    labels: list[tuple[str, str]],
    genes: np.ndarray,
    num_batches: int,
) -> ad.AnnData:
    counts = sp.vstack(blocks, format="csr")
    order = rng.permutation(counts.shape[0])
    columns = Columns()
    obs = pd.DataFrame(
        {
            columns.perturbation: pd.Categorical([labels[row][0] for row in order]),
            columns.cell_type: pd.Categorical([labels[row][1] for row in order]),
            columns.batch: pd.Categorical([f"batch{row % num_batches}" for row in range(len(order))]),
        },
        index=pd.Index([f"cell{row:07d}" for row in range(len(order))]),
    )
    cells = ad.AnnData(X=counts[order], obs=obs, var=pd.DataFrame(index=pd.Index(genes, name="gene")))
    cells.uns[KEY] = steval_record(made_by="steval.data.synthetic", scale="counts", target_sum=None, columns=columns)
    return cells
