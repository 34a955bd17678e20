"""Adapters of a service: their answers are those of `predict --adapter`, and a base is in memory once, whatever stands on it."""

import os
import shutil
import threading
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.checkpoints.adapters.adapter_file import load_adapted
from steval.checkpoints.adapters.given import load_given
from steval.checkpoints.store import Checkpoint
from steval.cli.app import app
from steval.data.cells.record import read_record
from steval.errors import CheckpointError, ConfigError, DataError, ServiceError
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.means import predicted_means
from steval.predictor.requests import request_names
from steval.service.client import ServiceClient
from steval.service.http.telemetry import service_metrics
from steval.service.models.below import checkpoints_below, look_at
from steval.service.models.shelf import Shelf
from steval.service.settings import ServiceSettings
from support.adapters import write_adapter_to
from support.service_models import NAMES, write_checkpoint
from support.shelves import model_of, put, settle, states, taken
from support.waiting import wait_until

REQUEST = {"perturbations": NAMES, "cells": 16, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory, service_cells, tiny_checkpoint) -> dict[str, Path]:
    """Two bases, and adapters: `a` and `b` to the first, `c` to the second."""
    place = tmp_path_factory.mktemp("adapters")
    other = write_checkpoint(place / "other.safetensors", service_cells, seed=7)
    bases = {"a": tiny_checkpoint, "b": tiny_checkpoint, "c": other}
    files = {
        name: write_adapter_to(base, place / f"{name}.adapter.safetensors", seed=seed)
        for seed, (name, base) in enumerate(bases.items())
    }
    return {"base": tiny_checkpoint, "other": other, **files}


def expected_means(checkpoint: Checkpoint) -> np.ndarray:
    predictor, pool = Predictor(checkpoint, device="cpu"), checkpoint_controls(checkpoint)
    plan = predictor.plan(request_names(NAMES, 16, seed=3), pool)
    return np.array([one.mean for one in predicted_means(plan, predictor.predict(plan.request, pool))])


@pytest.fixture(scope="module")
def expected(made) -> dict[str | None, tuple[str, np.ndarray]]:
    """Digest and means of `predict --adapter`, and of the base alone under None."""
    files = {None: load_given(made["base"]), **{name: load_given(made["base"], made[name]) for name in ("a", "b")}}
    return {name: (checkpoint.digest, expected_means(checkpoint)) for name, checkpoint in files.items()}


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_base_is_in_memory_once(made, dtype):
    base = model_of(made["base"], dtype=dtype)
    adapters = [model_of(made[name], base, dtype=dtype) for name in ("a", "b")]
    own = {"project_out.0.bias"}
    for adapter in adapters:
        weights, below = adapter.predictor.weights(), base.predictor.weights()
        assert {name for name in below if weights[name].data_ptr() != below[name].data_ptr()} == own
        assert adapter.predictor._features.data_ptr() == base.predictor._features.data_ptr()
        assert adapter.shared is base.shared
        assert adapter.card.base == base.predictor.digest != adapter.card.checkpoint
    matrices = sum(pair.a_RI.numel() + pair.b_OR.numel() for pair in load_matrices(made["a"]))
    assert adapters[0].card.parameters == base.card.parameters + matrices
    for one in (base, *adapters):
        one.close()


def load_matrices(path: Path):
    from steval.checkpoints.adapters.adapter_file import read_adapter
    from steval.model.lora import split_pairs

    return split_pairs(read_adapter(path)[1])[1].values()


def test_an_adapter_of_another_base_is_refused_on_a_base_in_memory(made):
    base = model_of(made["base"])
    with pytest.raises(CheckpointError, match=r"is not for .*tiny\.safetensors.* trained from other\.safetensors"):
        model_of(made["c"], base)
    base.close()


def wait_for(http: httpx.Client, *names: str) -> dict[str, dict]:
    def listed() -> dict[str, dict] | None:
        found = {one["name"]: one for one in http.get("/models").json()["models"]}
        return found if found.keys() >= set(names) else None

    return wait_until(listed)


@pytest.fixture
def lying(http, made, models_dir):
    """`tuned/a` and `tuned/b` lie in the service's directory, `lost` too, whose base does not."""
    (models_dir / "tuned").mkdir(exist_ok=True)
    files = [models_dir / "tuned/a.adapter.safetensors", models_dir / "tuned/b.adapter.safetensors"]
    files.append(models_dir / "lost.adapter.safetensors")
    for source, target in zip("abc", files, strict=True):
        beside = target.with_name(f".{target.name}")
        shutil.copy(made[source], beside)
        beside.replace(target)
    wait_for(http, "tuned/a", "tuned/b", "lost")
    yield
    for file in files:
        file.unlink()


def test_every_address_answers_with_the_adapter_that_is_asked_for(http, lying, expected, service_url, tmp_path):
    listed = wait_for(http)
    assert {name: (listed[name]["adapter"], listed[name]["base"]) for name in ("tiny", "tuned/a", "lost")} == {
        "tiny": (False, None),
        "tuned/a": (True, "tiny"),
        "lost": (True, None),
    }
    assert (listed["lost"]["state"], listed["tuned/a"]["checkpoint"]) == ("broken", expected["a"][0])
    assert "trained from other.safetensors" in listed["lost"]["problem"]
    for name in ("a", "b"):
        digest, means = expected[name]
        for asked in (
            {"adapter": f"tuned/{name}"},
            {"adapter": digest[:12], "model": "tiny"},
            {"model": f"tuned/{name}"},
        ):
            answer = http.post("/predict", json=REQUEST | asked).json()
            assert answer["checkpoint"] == digest
            found = np.array([one["mean"] for one in answer["predictions"]])
            np.testing.assert_allclose(found, means, rtol=1e-4, atol=1e-5)
        card = http.get("/model", params={"adapter": f"tuned/{name}"}).json()
        assert (card["checkpoint"], card["base"]) == (digest, expected[None][0])
        assert http.get("/perturbations", params={"adapter": f"tuned/{name}", "search": "SRC"}).json()["matching"] == 1
    assert http.post("/predict", json=REQUEST).json()["checkpoint"] == expected[None][0]
    with ServiceClient(service_url, adapter="tuned/a") as client:
        job = client.submit_prediction(NAMES, 16, seed=3, output="mean")
        means = ad.read_h5ad(client.save_prediction_job(job, tmp_path / "j.h5ad"))
    found = means[means.obs["predicted"].to_numpy()].X
    np.testing.assert_allclose(found.toarray(), expected["a"][1], rtol=1e-5, atol=1e-6)
    out = tmp_path / "u.h5ad"
    options = [
        "--url",
        service_url,
        "--adapter",
        "tuned/b",
        "-p",
        ",".join(NAMES),
        "-n",
        "16",
        "--seed",
        "3",
        "-o",
        str(out),
    ]
    run = CliRunner().invoke(app, ["predict", *options, "--output", "mean"])
    assert run.exit_code == 0, run.output
    assert read_record(ad.read_h5ad(out).uns)["details"]["checkpoint_digest"] == expected["b"][0]


def test_an_adapter_that_there_is_not_is_a_clear_404_everywhere(http, lying, service_url):
    cases = {
        ("tuned/z", None): ("unknown_adapter", "there is no adapter 'tuned/z'; nearest known tuned/"),
        ("tiny", None): ("unknown_adapter", "there is no adapter 'tiny'"),
        ("tuned/a", "tuned/b"): (
            "unknown_adapter",
            "the model 'tuned/b' has no adapter 'tuned/a': that belongs to 'tiny'",
        ),
        ("tuned/a", "none"): ("unknown_model", "there is no model 'none'"),
    }
    for (adapter, model), (code, words) in cases.items():
        named = {name: value for name, value in (("adapter", adapter), ("model", model)) if value}
        refused = [
            http.post("/predict", json=REQUEST | named),
            http.post("/predictions", json=REQUEST | named),
            http.get("/model", params=named),
            http.get("/perturbations", params=named),
            http.post("/score", json={"predictions": "cells.h5ad", **named}),
        ]
        assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(404, code)] * 5
        assert all(words in one.json()["error"]["message"] for one in refused)
    lost = [
        http.post("/predict", json=REQUEST | {"adapter": "lost"}),
        http.post("/score", json={"predictions": "cells.h5ad", "adapter": "lost"}),
    ]
    assert [(one.status_code, one.json()["error"]["code"]) for one in lost] == [(503, "bad_model")] * 2
    with (
        ServiceClient(service_url, adapter="tuned/z") as client,
        pytest.raises(DataError, match="no adapter 'tuned/z'"),
    ):
        client.predict_means(["STAT1"], 16)


def test_a_scoring_job_takes_columns_and_data_of_the_adapter(http, lying, service_url, service_dir):
    with ServiceClient(service_url, adapter="tuned/a") as client:
        job = client.submit_score("cells.h5ad", on_server=True, profile="minimal", metrics_only=True)
        result = client.wait_for_score(job)
        client.remove_score(job)
    assert result["record"]["model"]["adapter"].endswith("a.adapter.safetensors")


def test_requests_of_several_adapters_at_once_each_get_their_own_cells(http, lying, expected, service_url):
    failures: list[str] = []

    def ask(name: str | None) -> None:
        named = {} if name is None else {"adapter": f"tuned/{name}"}
        with httpx.Client(base_url=service_url, timeout=60) as client:
            for number in range(6):
                answer = client.post(
                    "/predict", json=REQUEST | named | {"cells": 16, "perturbations": NAMES[: 1 + number % 5]}
                )
                facts = answer.json()
                digest, means = expected[name]
                found = np.array([one["mean"] for one in facts["predictions"]])
                if facts["checkpoint"] != digest or not np.allclose(found, means[: len(found)], rtol=1e-4, atol=1e-5):
                    failures.append(f"{name}: {facts['checkpoint']}")

    threads = [threading.Thread(target=ask, args=(name,)) for name in (None, "a", "b") * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []


def test_an_adapter_has_its_files_name_unless_a_checkpoint_has_it(tmp_path, made):
    for name in (
        "x.safetensors",
        "x.adapter.safetensors",
        "y.adapter.safetensors",
        "run/checkpoints/best-val.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made["a" if "adapter" in name else "base"], tmp_path / name)
    shutil.copy(made["a"], tmp_path / "run/checkpoints/best-val.adapter.safetensors")
    assert list(checkpoints_below(tmp_path)) == ["run", "x", "x.adapter", "y"]


def test_a_copy_of_the_base_has_its_adapters_too(shelves, made):
    for name, source in (("base", "base"), ("copy", "base"), ("other", "other")):
        put(made[source], shelves.directory / f"{name}.safetensors")
    put(made["a"], shelves.directory / "a.adapter.safetensors")
    shelf = shelves()
    assert {shelf.find(name, "a").name for name in (None, "base", "copy")} == {"a"}
    with pytest.raises(ServiceError, match="that belongs to"):
        shelf.find("other", "a")


def test_a_base_comes_with_its_adapter_and_goes_after_it(shelves, made):
    put(made["base"], shelves.directory / "base.safetensors")
    put(made["other"], shelves.directory / "other.safetensors")
    for name in ("a", "b"):
        put(made[name], shelves.directory / f"{name}.adapter.safetensors")
    shelf = shelves(max_bytes=sum(look_at(name, made[name]).num_bytes for name in ("base", "a", "b")))
    lease = taken(shelf, "a")
    taken(shelf, "b").close()
    assert states(shelf) == {"a": "loaded", "b": "loaded", "base": "loaded", "other": "available"}
    with pytest.raises(ServiceError, match="in use"):  # the base is in use by `a`, which is answering
        shelf.load("other").result(30)
    assert states(shelf)["base"] == "loaded"
    lease.close()
    taken(shelf, "other").close()
    assert states(shelf) == {"a": "available", "b": "available", "base": "available", "other": "loaded"}


def test_an_adapter_that_does_not_fit_beside_its_base_is_refused_at_once(shelves, made):
    put(made["base"], shelves.directory / "base.safetensors")
    put(made["a"], shelves.directory / "a.adapter.safetensors")
    base, adapter = (look_at(name, made[name]).num_bytes for name in ("base", "a"))
    shelf = shelves(max_bytes=base + adapter // 2, patience=30.0)
    with pytest.raises(ServiceError, match=f"needs {adapter:,} bytes beside the {base:,} of what stays") as refused:
        shelf.load("a").result(10)
    assert (refused.value.code, refused.value.retry_after) == ("model_too_large", None)
    assert states(shelf) == {"a": "broken", "base": "available"}
    assert "beside the" in next(item.problem for item in shelf.items() if item.name == "a")
    assert shelves.loaded == []
    taken(shelf, "base").close()


def test_a_changed_base_leaves_its_adapters_what_they_are_until_theirs_come(shelves, made, service_cells, tmp_path):
    put(made["base"], shelves.directory / "base.safetensors")
    put(made["a"], shelves.directory / "a.adapter.safetensors")
    shelf = shelves()
    first = taken(shelf, "a")
    digest = first.model.predictor.digest
    first.close()
    shutil.copy(shelves.directory / "base.safetensors", tmp_path / "same.safetensors")
    put(tmp_path / "same.safetensors", shelves.directory / "base.safetensors")  # the same content anew: still one base
    settle(shelf)
    again, base = taken(shelf, "a"), taken(shelf, "base")
    assert again.model is not first.model
    assert again.model.shared is base.model.shared
    again.close(), base.close()
    # the next adapter is there before its base: what answers stays until both are
    put(made["c"], shelves.directory / "a.adapter.safetensors")
    settle(shelf)
    item = next(one for one in shelf.items() if one.name == "a")
    assert (item.state, item.checkpoint) == ("loaded", digest)
    assert "trained from other.safetensors" in (item.problem or "")
    put(made["other"], shelves.directory / "base.safetensors")
    for _ in range(2):
        settle(shelf)
    lease = taken(shelf, "a")
    assert lease.model.predictor.digest == load_adapted(made["other"], made["c"]).digest
    assert {(one.state, one.problem) for one in shelf.items()} == {("loaded", None)}
    lease.close()


def test_given_adapters_are_loaded_at_the_start_and_keep_their_names(made):
    shelf = Shelf(
        lambda found, base: model_of(found.path, base),
        service_metrics(),
        default=made["base"],
        adapters={"left": made["a"]},
    )
    shelf.bring_given()
    assert {(one.name, one.state, one.base) for one in shelf.items()} == {
        ("tiny", "loaded", None),
        ("left", "loaded", "tiny"),
    }
    assert shelf.find(None, "left").checkpoint_path == made["base"]
    assert shelf.find(None).name == "tiny"
    shelf.close()


def test_the_command_refuses_adapters_before_anything_starts(made, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("STEVAL_")]:  # those of the service of these tests
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("a server was started"))
    cases = [
        ([made["base"], "--adapter", made["a"]], 2, "is not NAME=PATH"),
        ([made["base"], "--adapter", f"x={made['a']}", "--adapter", f"x={made['b']}"], 2, "'x' is given twice"),
        ([made["base"], "--adapter", f"x={tmp_path / 'none'}"], 2, "no such file"),
        (["--models", tmp_path, "--adapter", f"x={made['a']}"], 2, "adapters belong to a checkpoint"),
        ([made["base"], "--adapter", f"x={made['c']}"], 3, "is not for"),
    ]
    for arguments, code, words in cases:
        run = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert (run.exit_code, words in " ".join(run.output.split())) == (code, True), run.output


def test_adapters_survive_the_environment(made):
    settings = ServiceSettings(checkpoint=made["base"], adapters={"a": made["a"], "b": made["b"]})
    variables = settings.to_environment()
    assert variables["STEVAL_ADAPTERS"] == f"a={made['a']}:b={made['b']}"
    assert ServiceSettings.from_environment(variables).adapters == settings.adapters
    with pytest.raises(ConfigError, match="STEVAL_ADAPTERS takes NAME=PATH"):
        ServiceSettings.from_environment({"STEVAL_ADAPTERS": "a"})
