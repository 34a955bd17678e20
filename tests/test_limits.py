"""No number that a person, a file or a request gives takes the machine's memory: it has an end, or what it asks for is refused."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from annotated_types import Le, Lt
from pydantic.fields import FieldInfo

import steval
from steval import limits, machine
from steval.errors import ConfigError
from steval.evaluator.reference.bootstrap import draw_weights
from steval.settings import Settings
from tests.support.mutations.forking import CommandServer, Started
from tests.support.predictor_models import lognorm_cells, tiny_config, write_checkpoint

SAID_BY_STEVAL = {
    "steval.batch.jobs", "steval.checkpoints.manifest", "steval.data.reference", "steval.service.schemas.BatchRow",
    "steval.service.schemas.ControlProfile", "steval.service.schemas.ModelCard", "steval.service.schemas.ModelItem",
    "steval.service.schemas.PerturbationList", "steval.service.schemas.PredictAnswer", "steval.service.schemas.PredictedProfile",
    "steval.service.schemas.PredictionJob", "steval.workflows.sweep.space.Parameter",
}  # fmt: skip
"""Records and answers, whose numbers say what was counted, and a sweep's values, each of another setting: they size nothing."""


def told() -> Iterator[type[Settings]]:
    """Every model of what steval is told."""
    root = Path(steval.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if re.search(r"^class \w+\(\w*(Settings|Choice)\)", path.read_text("utf-8"), re.M):
            importlib.import_module(".".join(["steval", *path.relative_to(root).with_suffix("").parts]))
    waiting = [Settings]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        name = f"{model.__module__}.{model.__name__}"
        if model.__module__.startswith("steval") and not {name, model.__module__} & SAID_BY_STEVAL:
            yield model


def whole_numbers(annotation: Any, constraints: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The constraints of each whole number in an annotation."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        found = [part for one in more for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
        yield from whole_numbers(inner, (*constraints, *found))
    elif annotation is int:
        yield constraints
    else:
        for argument in get_args(annotation):
            if not isinstance(argument, str | int | float):
                yield from whole_numbers(argument)


def test_every_number_that_is_told_has_an_end() -> None:
    models = list(told())
    assert len(models) > 30
    endless = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        for constraints in whole_numbers(field.annotation, tuple(field.metadata))
        if not any(isinstance(one, Le | Lt) for one in constraints)
    ]
    assert not endless


@pytest.fixture
def place(tmp_path: Path) -> Path:
    cells = lognorm_cells()[::4].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_checkpoint(tmp_path / "m.safetensors", tiny_config(), cells)
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with CommandServer(tmp_path_factory.mktemp("streams")) as server:
        yield server


TOO_LARGE = (
    ("sets.per_batch=9999999999999",), ("sets.size=65537",), ("sets.per_batch=16777216",),
    ("sets.size=65536", "sets.per_batch=100000"), ("network.hidden_dim=16777216",),
    ("network.num_layers=32", "network.hidden_dim=65536"), ("network.intermediate_dim=16777216", "network.num_layers=64"),
    ("compute.workers=4096",), ("compute.workers=9999999999999",), ("network.num_layers=9999999999999",),
    ("data.memory_gb=1e308",), ("compute.devices=9999999999999",), (f"seed={10**30}",),
)  # fmt: skip


def test_commands_refuse_what_they_cannot_hold(place: Path, server: CommandServer) -> None:
    """Each in a process of its own, whose peak is measured."""
    fine = ("finetune", "quick-cpu", "--set", "data.files=[cells.h5ad]", "--dry-run")
    lines = [(*fine, *(word for one in changes for word in ("--set", one))) for changes in TOO_LARGE]
    predict = ("predict", "m.safetensors", "-o", "out.h5ad")
    lines += [
        (*predict, "-n", "100000001"), (*predict, "--set-size", "65537"), (*predict, "--batch-cells", str(10**12)),
        ("score", "cells.h5ad", "--real", "cells.h5ad", "-o", "s", "--bootstrap", "100001"),
        ("demo", "-o", "d", "--set", "sets.per_batch=16777216"),
        (*predict, "--threads", "1000"), (*fine, "--threads", "1000"),
        ("serve", "m.safetensors", "--workers", "4096", "--no-auth", "--port", "1"),
    ]  # fmt: skip
    found = {}
    for line in lines:
        ended = server.run(Started(line, str(place), {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}))
        if ended.code != 2 or ended.stderr.count("error: ") != 1 or ended.memory > 2 * 2**30 or ended.hung:
            found[line] = ended
    assert not found


def test_sides_that_are_fine_one_by_one_are_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "total_memory", lambda: 2**30)
    with pytest.raises(
        ConfigError,
        match=r"100,000 resamples of 1,000 perturbations would take 2.2 GiB of memory at least, and .* 1.0 GiB",
    ):
        draw_weights(1000, 100_000, 0)
    assert draw_weights(10, 100, 0).sum() == 1000


def test_the_machine_is_asked() -> None:
    assert 2**28 < machine.available_memory() <= machine.total_memory()
    with pytest.raises(ConfigError, match=r"at most \d+ processes or threads"):
        limits.require_processes(limits.FEW_PROCESSES + limits.BUSY * machine.num_cores(), "workers")
    limits.require_processes(machine.num_cores(), "workers")
