"""The service in this process, on a real port, with a small checkpoint."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import httpx
import pytest

from steval.data.reference import DataReference, FileReference
from support.browser import CHROMIUM, FLAGS, playwright
from support.service_models import lognorm_cells, served_app, wait_until_ready, write_checkpoint
from support.shelves import Shelves


@pytest.fixture(scope="session")
def service_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `cells.h5ad` (real), `train.h5ad`, `tiny.safetensors` and the jobs."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def service_cells(service_dir: Path) -> ad.AnnData:
    """See `lognorm_cells`; also in `data/cells.h5ad`."""
    cells = lognorm_cells()
    (service_dir / "data").mkdir()
    cells.write_h5ad(service_dir / "data" / "cells.h5ad")
    return cells


@pytest.fixture(scope="session")
def tiny_checkpoint(service_dir: Path, service_cells: ad.AnnData) -> Path:
    """A checkpoint that records `cells.h5ad` as its evaluation data."""
    real = FileReference.of(service_dir / "data" / "cells.h5ad")
    columns = {"perturbation": "target_gene", "control": "non-targeting", "cell_type": "cell_type", "batch": "batch"}
    evaluation = DataReference(files=(real,), columns=columns, scale="lognorm", target_sum=10_000.0)
    return write_checkpoint(service_dir / "tiny.safetensors", service_cells, evaluation=evaluation)


@pytest.fixture(scope="session")
def models_dir(service_dir: Path) -> Path:
    """Checkpoints that the service finds by itself; tests put them there."""
    directory = service_dir / "models"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def service_url(service_dir: Path, tiny_checkpoint: Path, models_dir: Path) -> Iterator[str]:
    """The service of `tiny_checkpoint` and of what lies in `models_dir`, in this process."""
    variables = {
        "STEVAL_CHECKPOINT": str(tiny_checkpoint),
        "STEVAL_MODELS": str(models_dir),
        "STEVAL_MODEL_POLL_SECONDS": "0.05",
        "STEVAL_DATA_DIR": str(service_dir / "data"),
        "STEVAL_JOB_DIR": str(service_dir / "jobs"),
        "STEVAL_THREADS": "1",
        "STEVAL_BODY_TIMEOUT": "2",
        "STEVAL_UPLOAD_TIMEOUT": "5",
        "STEVAL_MAX_CELLS": "2000",
        "STEVAL_MAX_UPLOAD_BYTES": str(20 * 2**20),
        "STEVAL_MAX_SCORE_VALUES": "1000000",
        "BENTOML_DO_NOT_TRACK": "True",
    }
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BentoML's own imports use what its dependencies deprecated
            from steval.service.app import StevalService

        with served_app(StevalService.to_asgi()) as url:
            wait_until_ready(url)
            yield url
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def http(service_url: str) -> Iterator[httpx.Client]:
    """A client of the service in this process."""
    with httpx.Client(base_url=service_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, headless; not for longer, since its loop would be in the way of tests that run one."""
    with playwright().sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, service_url):
    """The page in a light look; every console error and every request to another origin fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", accept_downloads=True)
    opened = context.new_page()
    troubles: list[str] = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda one: None if one.url.startswith((service_url, "blob:")) else troubles.append(one.url))
    opened.goto(service_url)
    playwright().expect(opened.locator("#vocabulary")).to_contain_text("5 known")
    yield opened
    context.close()
    assert not troubles


@pytest.fixture
def shelves(tmp_path: Path) -> Iterator[Shelves]:
    """Shelves of `tmp_path/models`, closed at the end."""
    directory = tmp_path / "models"
    directory.mkdir()
    maker = Shelves(directory)
    yield maker
    for shelf in maker.made:
        shelf.close()
