"""Several models: names, loading on first use, memory, files that change, appear, break and go; none of it loses a request."""

import json
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import httpx
import numpy as np
import pytest

from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import load_checkpoint
from steval.errors import ServiceError
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.means import predicted_means
from steval.predictor.requests import request_names
from steval.service.http.telemetry import service_metrics
from steval.service.models.below import checkpoints_below, look_at
from steval.service.models.loaded import Model
from steval.service.models.threads import NetworkThread
from steval.service.predict.predicting import answer_tag
from steval.service.schemas import PredictBody
from steval.service.settings import ServiceSettings
from support.service_models import write_checkpoint
from support.shelves import put, settle, states, taken

REQUEST = {"perturbations": ["STAT1"], "cells": 16, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory, service_cells) -> dict[int, Path]:
    """Three checkpoints of one form with different weights, by their seed."""
    directory = tmp_path_factory.mktemp("made")
    return {seed: write_checkpoint(directory / f"{seed}.safetensors", service_cells, seed=seed) for seed in (1, 2, 3)}


def digest(path: Path) -> str:
    return load_checkpoint(path).digest


def test_an_answer_from_other_control_cells_has_another_tag(made, tmp_path, service_cells):
    """The same name, checkpoint and request, and another file of control cells since the service last started."""
    controls = tmp_path / "controls.h5ad"
    tags = []
    for number in (1, 2, 2):
        if len(tags) != 2:
            service_cells[number::3].copy().write_h5ad(controls)
        model = Model(
            made[1], ServiceSettings(device="cpu"), service_metrics(), networks=NetworkThread(), controls=controls
        )
        tags.append(answer_tag(model, PredictBody.parse(REQUEST, source="the request"), "json"))
        model.close()
    assert tags[0] != tags[1] == tags[2]


def test_names_are_paths_below_the_directory_and_those_of_runs(tmp_path, made):
    for name in (
        "b.safetensors",
        "deep/er/c.safetensors",
        "run/checkpoints/best-val.safetensors",
        ".hidden.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made[1], tmp_path / name)
    shutil.copy(made[1], tmp_path / "run/checkpoints/last.safetensors")
    shutil.copy(made[1], tmp_path / "run.safetensors")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / ".hidden").mkdir()
    shutil.copy(made[1], tmp_path / ".hidden/d.safetensors")
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in checkpoints_below(tmp_path).items()}
    assert found == {
        "b": "b.safetensors",
        "deep/er/c": "deep/er/c.safetensors",
        "run": "run/checkpoints/best-val.safetensors",
        "run.safetensors": "run.safetensors",
    }


def test_models_are_loaded_when_they_are_first_asked_for_and_found_by_name_or_digest(shelves, made):
    for seed in (1, 2):
        put(made[seed], shelves.directory / f"m{seed}.safetensors")
    shelf = shelves()
    assert (shelves.loaded, states(shelf)) == ([], {"m1": "available", "m2": "available"})
    assert shelf.lease("m1") is None
    assert taken(shelf, "m1").model.predictor.digest == digest(made[1])
    assert taken(shelf, digest(made[2])[:12]).model.predictor.digest == digest(made[2])
    assert shelves.loaded == ["m1", "m2"]
    for unknown in ("m3", digest(made[2])[:11], "", "x" * 64):
        with pytest.raises(ServiceError, match="no model") as refused:
            shelf.find(unknown)
        assert refused.value.http_status == 404
    with pytest.raises(ServiceError, match="has 2 models") as unclear:
        shelf.find(None)
    assert unclear.value.http_status == 422


def test_one_model_alone_and_the_one_given_by_its_path_need_no_name(shelves, made, tmp_path):
    put(made[1], shelves.directory / "only.safetensors")
    assert shelves().find(None).name == "only"
    put(made[2], shelves.directory / "second.safetensors")
    default = tmp_path / "given.safetensors"
    shutil.copy(made[3], default)
    shelf = shelves(default=default)
    assert shelf.find(None).name == "given"
    assert [item.name for item in shelf.items() if item.default] == ["given"]
    inside = shelves(default=shelves.directory / "second.safetensors")
    assert inside.find(None).name == "second"
    assert len(inside.items()) == 2


def test_the_least_recently_used_model_goes_and_never_one_in_use(shelves, made):
    for seed in (1, 2, 3):
        put(made[seed], shelves.directory / f"m{seed}.safetensors")
    size = look_at("x", made[1]).num_bytes
    shelf = shelves(max_bytes=2 * size + size // 2)
    taken(shelf, "m1").close()
    taken(shelf, "m2").close()
    taken(shelf, "m1").close()
    held = taken(shelf, "m3")
    assert states(shelf) == {"m1": "loaded", "m2": "available", "m3": "loaded"}
    other = taken(shelf, "m1")
    with pytest.raises(ServiceError, match="in use") as refused:
        shelf.load("m2").result(30)
    assert (refused.value.http_status, refused.value.retry_after is not None) == (503, True)
    assert states(shelf) == {"m1": "loaded", "m2": "available", "m3": "loaded"}
    other.close()
    other.close()  # twice is once
    taken(shelf, "m2").close()
    assert states(shelf) == {"m1": "available", "m2": "loaded", "m3": "loaded"}
    held.close()


def test_loading_waits_for_a_model_that_is_given_back_meanwhile(shelves, made):
    for seed in (1, 2):
        put(made[seed], shelves.directory / f"m{seed}.safetensors")
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 3 // 2, patience=30.0)
    first = taken(shelf, "m1")
    waiting: Future[None] = shelf.load("m2")
    assert not waiting.done()
    first.close()
    waiting.result(30)
    assert states(shelf) == {"m1": "available", "m2": "loaded"}


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers(shelves, made):
    put(made[1], shelves.directory / "m1.safetensors")
    shelf = shelves(max_bytes=1000)
    with pytest.raises(ServiceError, match="more than the 1,000"):
        shelf.load("m1").result(30)
    assert states(shelf) == {"m1": "broken"}


def test_a_changed_model_takes_over_where_there_is_no_room_for_both(shelves, made):
    path = shelves.directory / "m.safetensors"
    put(made[1], path)
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 3 // 2, patience=30.0)
    taken(shelf, "m").close()
    put(made[2], path)
    settle(shelf)
    assert states(shelf) == {"m": "loaded"}
    assert shelf.items()[0].problem is None
    assert taken(shelf, "m").model.predictor.digest == digest(made[2])


def test_a_changed_model_that_is_in_use_waits_its_time_and_says_so(shelves, made, caplog):
    path = shelves.directory / "m.safetensors"
    put(made[1], path)
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 3 // 2)
    lease = taken(shelf, "m")
    put(made[2], path)
    settle(shelf)
    again = shelf.lease("m")
    assert again.model is lease.model
    assert "waits, and the old one answers" in caplog.text
    again.close(), lease.close()
    time.sleep(0.1)
    settle(shelf)
    assert taken(shelf, "m").model.predictor.digest == digest(made[2])


def test_models_that_all_change_at_once_make_room_for_each_other(shelves, made):
    names = ("a", "b", "c")
    for name in names:
        put(made[1], shelves.directory / f"{name}.safetensors")
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 7 // 2, patience=30.0)
    for name in names:
        taken(shelf, name).close()
    for name in names:
        put(made[2], shelves.directory / f"{name}.safetensors")
    settle(shelf)
    assert "loaded" in states(shelf).values()
    for name in names:
        assert taken(shelf, name).model.predictor.digest == digest(made[2])


def test_a_default_model_that_cannot_be_changed_within_the_memory_stays_and_says_why(shelves, made, tmp_path):
    default = shelves.directory / "default.safetensors"
    put(made[1], default)
    shelf = shelves(default=default, max_bytes=look_at("x", made[1]).num_bytes * 3 // 2, patience=30.0)
    shelf.bring_given()
    put(made[2], default)
    for _ in range(2):
        settle(shelf)
    assert shelf.items()[0].problem.endswith("that this service has for models (STEVAL_MAX_MODEL_BYTES)")
    assert "beside the" in shelf.items()[0].problem
    assert taken(shelf, None).model.predictor.digest == digest(made[1])
    put(made[3], shelves.directory / "other.safetensors")
    shelf.refresh()
    with pytest.raises(ServiceError, match="more than the") as refused:  # at once: the default model never goes
        shelf.load("other").result(10)
    assert (refused.value.code, refused.value.retry_after) == ("model_too_large", None)
    assert states(shelf) == {"default": "loaded", "other": "broken"}
    assert shelves.loaded == ["default"]


def test_a_changed_file_takes_over_and_the_old_model_finishes(shelves, made):
    path = shelves.directory / "m.safetensors"
    put(made[1], path)
    shelf = shelves()
    old = taken(shelf, "m")
    put(made[2], path)
    settle(shelf)
    new = taken(shelf, "m")
    assert (new.model.predictor.digest, shelf.find("m").digest) == (digest(made[2]),) * 2
    assert old.model.predictor.digest == digest(made[1])
    old.model.batcher.accept(1).close()  # still answers what began with it
    old.close()
    new.close()
    assert shelves.loaded == ["m", "m"]


@pytest.mark.parametrize("damage", ["cut off", "other bytes", "text", "a value"])
def test_a_broken_file_replaces_nothing_and_a_good_one_after_it_does(shelves, made, damage):
    path = shelves.directory / "m.safetensors"
    put(made[1], path)
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 5)
    taken(shelf, "m").close()
    content = made[2].read_bytes()
    changed = bytearray(content)
    changed[-100] ^= 0xFF
    path.write_bytes(
        {"cut off": content[:-1000], "other bytes": b"\0" * 500, "text": b"hello", "a value": bytes(changed)}[damage]
    )
    settle(shelf)
    assert taken(shelf, "m").model.predictor.digest == digest(made[1])
    (item,) = shelf.items()
    assert (item.state, item.checkpoint) == ("loaded", digest(made[1]))
    assert item.problem
    assert str(shelves.directory) not in item.problem
    settle(shelf)
    assert len(shelves.loaded) <= 2  # the same broken file is not tried again and again
    put(made[3], path)
    settle(shelf)
    assert taken(shelf, "m").model.predictor.digest == digest(made[3])
    assert shelf.items()[0].problem is None


def test_a_good_model_whose_file_is_broken_now_does_not_leave_the_memory(shelves, made):
    for seed in (1, 2):
        put(made[seed], shelves.directory / f"m{seed}.safetensors")
    shelf = shelves(max_bytes=look_at("x", made[1]).num_bytes * 3 // 2)
    taken(shelf, "m1").close()
    (shelves.directory / "m1.safetensors").write_text("hello")
    settle(shelf)
    with pytest.raises(ServiceError, match="in use"):
        shelf.load("m2").result(30)
    assert taken(shelf, "m1").model.predictor.digest == digest(made[1])


def test_a_file_that_is_still_being_written_is_waited_for(shelves, made):
    shelf = shelves()
    path = shelves.directory / "m.safetensors"
    path.write_bytes(made[1].read_bytes()[:1000])
    shelf.refresh()
    assert states(shelf) == {"m": "broken"}
    for size in (2000, 3000):
        path.write_bytes(made[1].read_bytes()[:size])
        shelf.refresh()
    put(made[1], path)
    settle(shelf)
    assert taken(shelf, "m").model.predictor.digest == digest(made[1])
    assert shelves.loaded == ["m"]


def test_a_removed_file_is_no_model_once_it_stays_away(shelves, made):
    path = shelves.directory / "m.safetensors"
    put(made[1], path)
    shelf = shelves()
    lease = taken(shelf, "m")
    path.unlink()
    shelf.refresh()
    put(made[1], path)
    settle(shelf)
    assert states(shelf) == {"m": "loaded"}
    path.unlink()
    settle(shelf)
    assert states(shelf) == {}
    lease.close()


def test_a_directory_that_cannot_be_read_changes_nothing(shelves, made):
    put(made[1], shelves.directory / "m.safetensors")
    shelf = shelves()
    taken(shelf, "m").close()
    shelves.directory.rename(shelves.directory.with_name("away"))
    settle(shelf)
    assert states(shelf) == {"m": "loaded"}


def ask(client: httpx.Client, **changes) -> httpx.Response:
    return client.post("/predict", json={**REQUEST, **changes})


def wait_for(client: httpx.Client, name: str, checkpoint: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        listed = {item["name"]: item for item in client.get("/models").json()["models"]}
        if name in listed and listed[name]["checkpoint"] == checkpoint:
            return
        assert time.monotonic() < deadline, listed
        time.sleep(0.02)


def test_the_service_answers_with_the_model_that_is_asked_for(http, made, models_dir, tiny_checkpoint):
    (models_dir / "lab").mkdir()
    put(made[1], models_dir / "lab" / "one.safetensors")
    wait_for(http, "lab/one", digest(made[1]))
    listed = {item["name"]: item for item in http.get("/models").json()["models"]}
    assert listed["tiny"]["default"]
    assert not listed["lab/one"]["default"]
    assert listed["lab/one"]["state"] == "available"
    assert (listed["lab/one"]["num_genes"], listed["lab/one"]["num_perturbations"]) == (120, 5)
    checkpoint = load_checkpoint(made[1])
    predictor, pool = Predictor(checkpoint, device="cpu"), checkpoint_controls(checkpoint)
    request = request_names(["STAT1"], 16, seed=3)
    plan = predictor.plan(request, pool)
    expected = next(iter(predicted_means(plan, predictor.predict(request, pool)))).mean
    for model in ("lab/one", checkpoint.digest, checkpoint.digest[:12]):
        answer = ask(http, model=model).json()
        assert answer["checkpoint"] == checkpoint.digest
        np.testing.assert_allclose(answer["predictions"][0]["mean"], expected, rtol=1e-4, atol=1e-6)
        assert http.get("/model", params={"model": model}).json()["checkpoint"] == checkpoint.digest
    assert ask(http).json()["checkpoint"] == digest(tiny_checkpoint) == http.get("/model").json()["checkpoint"]
    assert http.get("/perturbations", params={"model": "lab/one", "search": "SRC"}).json()["matching"] == 1


def test_a_model_that_there_is_not_is_404_everywhere(http):
    refused = [
        ask(http, model="nothing"),
        http.get("/model", params={"model": "nothing"}),
        http.get("/perturbations", params={"model": "nothing"}),
        http.post("/score", json={"predictions": "cells.h5ad", "model": "nothing"}),
    ]
    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(404, "unknown_model")] * 4
    assert http.get("/model", params={"model": ""}).status_code == 422


def test_a_broken_file_is_listed_and_answers_503_without_the_services_paths(http, models_dir):
    (models_dir / "broken.safetensors").write_text("hello")
    deadline = time.monotonic() + 30
    while "broken" not in (listed := {one["name"]: one for one in http.get("/models").json()["models"]}):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (listed["broken"]["state"], bool(listed["broken"]["problem"])) == ("broken", True)
    answer = ask(http, model="broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "bad_model")
    assert str(models_dir) not in answer.text + json.dumps(listed)


def test_no_request_fails_while_models_are_swapped_under_load(http, service_url, made, models_dir):
    path = models_dir / "swapped.safetensors"
    put(made[1], path)
    wait_for(http, "swapped", digest(made[1]))
    assert ask(http, model="swapped").status_code == 200
    expected = {}
    for seed, source in made.items():
        checkpoint = load_checkpoint(source)
        predictor, pool = Predictor(checkpoint, device="cpu"), checkpoint_controls(checkpoint)
        request = request_names(["STAT1"], 16, seed=3)
        profile = next(iter(predicted_means(predictor.plan(request, pool), predictor.predict(request, pool))))
        expected[checkpoint.digest] = (seed, profile.mean)
    done = threading.Event()
    seen: Counter[int] = Counter()
    failures: list[str] = []

    def load() -> None:
        with httpx.Client(base_url=service_url, timeout=60) as client:
            while not done.is_set():
                answer = ask(client, model="swapped")
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                seed, mean = expected[answer.json()["checkpoint"]]
                if not np.allclose(answer.json()["predictions"][0]["mean"], mean, rtol=1e-4, atol=1e-5):
                    failures.append(f"values of another model than {seed}")
                seen[seed] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        while seen[1] < 5:
            time.sleep(0.02)
        put(made[2], path)
        wait_for(http, "swapped", digest(made[2]))
        path.write_bytes(made[3].read_bytes()[:-500])  # broken, and written in place
        while not {one["name"]: one for one in http.get("/models").json()["models"]}["swapped"]["problem"]:
            time.sleep(0.02)
        before = seen[2]
        while seen[2] < before + 5:
            time.sleep(0.02)
        put(made[3], path)
        wait_for(http, "swapped", digest(made[3]))
        before = seen[3]
        while seen[3] < before + 5:
            time.sleep(0.02)
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert min(seen[seed] for seed in made) > 0


def test_the_manifest_tells_what_a_scoring_job_may_read(tiny_checkpoint, service_dir):
    found = look_at("tiny", tiny_checkpoint)
    assert isinstance(found.manifest, Manifest)
    assert found.recorded_files == [str(service_dir / "data" / "cells.h5ad")]
