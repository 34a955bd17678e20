"""What the image `serve` installs (deploy/serve.txt) is what serving imports: nothing is missing, and nothing is idle."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from steval.service.client import ServiceClient
from support.service_models import NAMES, lognorm_cells, served_process, wait_until_ready, write_checkpoint

pytestmark = pytest.mark.slow
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the image has the extra tracing")
ROOT = Path(__file__).parents[2]

# Every process notes what it imports, whatever becomes of it, from before it is confined; what the image lacks is not there,
# neither to import nor in the records of what is installed.
SPY = """
import os, re, sys
from importlib import metadata
_lacking = set(os.environ["IMAGE_LACKS"].split())
_modules = {name for name, owners in metadata.packages_distributions().items()
            if all(re.sub(r"[-_.]+", "-", one).lower() in _lacking for one in owners)}
_notes = open(os.path.join(os.environ["IMPORT_NOTES"], str(os.getpid())), "w", buffering=1)
_seen = set()
def _note(event, arguments):
    if event == "import" and (name := arguments[0].split(".")[0]) not in _seen:
        _seen.add(name)
        _notes.write(name + "\\n")
sys.addaudithook(_note)
class _Lacking:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in _modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Lacking)
_from_name = metadata.Distribution.from_name
def _found(name):
    if re.sub(r"[-_.]+", "-", name).lower() in _lacking:
        raise metadata.PackageNotFoundError(name)
    return _from_name(name)
metadata.Distribution.from_name = _found
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that `requirements` bring with them."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        one = waiting.pop()
        if canonical(one.name) in found:
            continue
        found.add(canonical(one.name))
        for line in metadata.requires(one.name) or ():
            further = Requirement(line)
            if further.marker is None or further.marker.evaluate({"extra": ""}):
                waiting.append(further)
    return found


def wanted() -> list[str]:
    lines = (ROOT / "deploy" / "serve.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def lacking() -> set[str]:
    """Names of the installed packages that the image is without; the tests' own tools among them."""
    everything = {canonical(one.metadata["Name"]) for one in metadata.distributions()}
    return everything - closure(wanted()) - {"steval"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> set[str]:
    """Top-level names that a service asked for all it does, and a batch, import; without what the image lacks."""
    place = tmp_path_factory.mktemp("imports")
    (place / "sitecustomize.py").write_text(SPY)
    (place / "notes").mkdir()
    cells = lognorm_cells()
    cells[::2].copy().write_h5ad(place / "cells.h5ad")
    cells[1::2].copy().write_h5ad(place / "train.h5ad")
    checkpoint = write_checkpoint(place / "tiny.safetensors", cells)
    variables = {
        "PYTHONPATH": f"{place}:{ROOT}",
        "IMPORT_NOTES": str(place / "notes"),
        "IMAGE_LACKS": " ".join(sorted(lacking())),
    }
    with served_process(str(checkpoint), **variables) as (url, process), ServiceClient(url) as service:
        wait_until_ready(url)
        service.predict_means(["STAT1"], cells=16)
        service.save_predictions(place / "preds.h5ad", list(NAMES), cells=64)
        job = service.submit_prediction(["STAT1"], cells=32)
        service.save_prediction_job(job, place / "job.h5ad")
        score = service.submit_score(place / "preds.h5ad", place / "cells.h5ad", place / "train.h5ad")
        assert service.wait_for_score(score)["overall"] is not None, process.log
    (place / "night.yaml").write_text(
        "{checkpoints: [tiny.safetensors], data: [{real: cells.h5ad}], requests: [{name: all}],"
        " score: {metrics: [mae, roc_auc]}, run: {workers: 1}}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "steval", "batch", "night.yaml"],
        cwd=place,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name for notes in (place / "notes").iterdir() for name in notes.read_text().split()}


def test_serving_and_batches_work_without_what_the_image_lacks(imported):
    assert {"cell-eval", "pdex", "scanpy", "lightning", "tensorboard", "pytest"} <= lacking()
    assert {"torch", "bentoml", "sklearn"} <= imported


def test_serving_imports_all_that_the_image_is_told_to_install(imported):
    owners = {name: {canonical(one) for one in found} for name, found in metadata.packages_distributions().items()}
    used = set().union(*(owners.get(name, set()) for name in imported))
    assert {canonical(name) for name in wanted()} <= used


def test_the_image_lacks_what_trains():
    assert not closure(wanted()) & {"lightning", "tensorboard", "scanpy", "cell-eval", "ray", "pytest"}
