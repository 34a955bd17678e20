"""Shelves of real models for tests of the service's models and adapters, and what one does with them."""

import shutil
from pathlib import Path

from steval.service.http.telemetry import service_metrics
from steval.service.models.below import Found
from steval.service.models.loaded import Model
from steval.service.models.shelf import Lease, Shelf
from steval.service.models.threads import NetworkThread
from steval.service.settings import ServiceSettings


def model_of(path: Path, base: Model | None = None, *, networks: NetworkThread | None = None, **settings) -> Model:
    """A model on the CPU; an adapter needs its `base`. `networks`: shared with others."""
    options = ServiceSettings.parse({"device": "cpu", **settings}, source="test")
    return Model(
        path,
        options,
        service_metrics(),
        networks=networks or NetworkThread(),
        base=None if base is None else base.shared,
    )


class Shelves:
    """Makes shelves of a directory that load real models; `loaded` are their names in turn."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.loaded: list[str] = []
        self.made: list[Shelf] = []

    def __call__(self, **options) -> Shelf:
        networks = NetworkThread()

        def load(found: Found, base: Model | None) -> Model:
            self.loaded.append(found.name)
            return model_of(found.path, base, networks=networks)

        shelf = Shelf(load, service_metrics(), directory=self.directory, **{"patience": 0.05, **options})
        self.made.append(shelf)
        shelf.refresh()
        return shelf


def put(source: Path, target: Path) -> None:
    """Replace a file as a careful writer does: beside it, then renamed."""
    beside = target.with_name(f".{target.name}.new")
    shutil.copy(source, beside)
    beside.replace(target)


def taken(shelf: Shelf, name: str | None) -> Lease:
    """A lease of a model, loaded where it is not."""
    if (lease := shelf.lease(name)) is None:
        shelf.load(name).result(30)
        lease = shelf.lease(name)
    assert lease is not None
    return lease


def states(shelf: Shelf) -> dict[str, str]:
    """State of each model by name."""
    return {item.name: item.state for item in shelf.items()}


def settle(shelf: Shelf) -> None:
    """Two looks, as a change needs, and the end of what they began, of adapters that follow their base too."""
    for _ in range(2):
        shelf.refresh()
    for _ in range(2):
        shelf._loader.submit(lambda: None).result(30)
