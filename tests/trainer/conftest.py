"""Small generated cells with known effects, for runs of a second."""

from pathlib import Path

import numpy as np
import pytest

from steval.data.cells.cellfile import write_anndata
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.synthetic import generate


@pytest.fixture(scope="session")
def screen_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cell types, four perturbations, 48 genes, lognorm to 1,000; an embedding `X_pca` of 16 columns."""
    screen = generate(
        num_genes=48, num_perturbations=4, cells_per_perturbation=24, num_controls=30, cell_types=("left", "right"),
        affected_genes=(5, 10), counts_per_cell=500, num_batches=2, seed=3,
    ).cells  # fmt: skip
    screen.X = lognorm(screen.X, 1000.0)
    screen.obsm["X_pca"] = screen.X.toarray() @ np.random.default_rng(0).normal(size=(48, 16)).astype(np.float32)
    screen.uns[KEY] = steval_record(made_by="tests", scale="lognorm", target_sum=1000.0, columns=Columns())
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    write_anndata(screen, path)
    return path
