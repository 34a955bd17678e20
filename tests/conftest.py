"""Fixtures that several rooms share: small real data, prepared once a session."""

from pathlib import Path

import pytest

from steval.data.example import example_path
from steval.data.prepare import PrepareSettings, prepare


@pytest.fixture(scope="session")
def counts_path() -> Path:
    """The packaged real cells: 600 × 1,000 raw counts, five perturbations and controls."""
    return example_path()


@pytest.fixture(scope="session")
def lognorm_path(tmp_path_factory: pytest.TempPathFactory, counts_path: Path) -> Path:
    """The packaged cells as `steval prepare` makes them: lognorm to 10,000, cell type H1."""
    path = tmp_path_factory.mktemp("prepared") / "lognorm.h5ad"
    prepare(counts_path, path, settings=PrepareSettings(cell_type_name="H1"))
    return path
