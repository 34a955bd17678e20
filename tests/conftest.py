"""Fixtures that several rooms share: small real data, prepared once a session."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from steval.data.cells.prepare import PrepareSettings, prepare
from steval.data.example import example_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


pytest.register_assert_rewrite("support")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would every process that a test starts."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
