"""Real cells split for scoring: training, evaluated, and held-out cells that stand for an honest prediction."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.example import example
from steval.data.synthetic import generate

CONTROL = "non-targeting"
REAL_COLUMNS = Columns(cell_type=None, batch="batch")


@dataclass(frozen=True)
class Screen:
    """Lognorm cells: `train`, `real` (evaluated), `held_out` (replicates of `real`, its controls those of `real`)."""

    train: ad.AnnData
    real: ad.AnnData
    held_out: ad.AnnData
    columns: Columns

    def prediction(self, change=None, seed=0):
        """The held-out cells, each perturbation's matrix `[n, G]` passed through `change(matrix, name, generator)`."""
        cells = self.held_out.copy()
        matrix = cells.X.toarray()
        generator = np.random.default_rng(seed)
        labels = cells.obs[self.columns.perturbation].astype(str).to_numpy()
        for name in sorted(set(labels) - {CONTROL}):
            rows = labels == name
            if change is not None:
                matrix[rows] = np.maximum(change(matrix[rows], name, generator), 0)
        cells.X = sp.csr_matrix(matrix)
        return cells


def real_screen(seed=0):
    """The packaged H1 cells: per perturbation 40 training, 30 evaluated and 30 held-out cells."""
    cells = example()
    cells.X = lognorm(sp.csr_matrix(cells.X), 10_000.0)
    return split(cells, REAL_COLUMNS, seed)


def synthetic_screen(seed=0, **changes):
    """Synthetic cells with strong known effects."""
    settings = {"num_genes": 300, "num_perturbations": 12, "cells_per_perturbation": 90, "num_controls": 300}
    cells = generate(**(settings | changes), seed=seed).cells
    cells.X = lognorm(sp.csr_matrix(cells.X), 10_000.0)
    return split(cells, Columns(), seed)


def split(cells, columns, seed):
    generator = np.random.default_rng(seed)
    parts = {"train": [], "real": [], "held_out": []}
    keys = cells.obs[columns.perturbation].astype(str)
    if columns.cell_type:
        keys = keys + "\0" + cells.obs[columns.cell_type].astype(str)
    for rows in keys.groupby(keys.to_numpy()).indices.values():
        shuffled = generator.permutation(rows)
        a, b = int(0.4 * len(rows)), int(0.7 * len(rows))
        for name, piece in zip(parts, np.split(shuffled, [a, b]), strict=True):
            parts[name].extend(piece)
    train, real, held = (cells[np.sort(rows)].copy() for rows in parts.values())
    controls = real[real.obs[columns.perturbation] == columns.control]
    held = ad.concat([held[held.obs[columns.perturbation] != columns.control], controls])
    held.obs.index = [f"p{i}" for i in range(held.n_obs)]
    for part in (train, real, held):
        for column in part.obs:
            part.obs[column] = pd.Categorical(part.obs[column].astype(str))
        part.uns.clear()
    return Screen(train, real, held, columns)
