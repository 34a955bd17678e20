"""A small random checkpoint on the packaged real cells, and lognorm files to predict from."""

from pathlib import Path

import anndata as ad
import pytest

from steval.checkpoints.store import Checkpoint
from support.predictor_models import lognorm_cells, tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def cells() -> ad.AnnData:
    """See `lognorm_cells`."""
    return lognorm_cells()


@pytest.fixture(scope="session")
def cells_path(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cells as an h5ad."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def checkpoint(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A down-then-up network in output space `all`, as the published ones."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors", tiny_config(), cells)
