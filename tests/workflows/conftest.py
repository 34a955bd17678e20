from pathlib import Path

import pytest

from steval.workflows.demo import DemoResult, run_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The demo with a few steps: everything it leaves behind is real."""
    directory: Path = tmp_path_factory.mktemp("demo") / "steval-demo"
    steps = ("phases.0.steps=12", "phases.1.steps=12", "checks.validate_every=6", "loggers=[csv]")
    return run_demo(directory, overrides=steps, device="cpu")
