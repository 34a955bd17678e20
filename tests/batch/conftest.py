"""The case of two checkpoints and two data sets, written once; tests write their own manifests of it."""

from pathlib import Path

import pytest

from support.batch_cases import write_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_case`; not to be changed by a test."""
    return write_case(tmp_path_factory.mktemp("batch") / "case")
