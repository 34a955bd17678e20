"""Keys with rules: roles, rates, rotation without a restart, and two keys that see nothing of each other."""

import contextlib
import itertools
import logging
import re
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import get_args

import httpx
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.errors import ConfigError, ServiceError
from steval.service.http.keys import KeyFile, add_key, read_keys, rotate_key
from steval.service.http.quotas import Charge, Quotas, taken
from steval.service.http.tenants import Rate, Tenant, read_rules
from steval.service.jobs.files import INPUTS, SCORE
from steval.service.jobs.store import JobStore, started
from steval.service.routes import ROUTES
from steval.service.schemas import JobState, PredictionJob, ScoreJob
from support.second_service import second_service

PROFILE = {"predictions": "cells.h5ad", "profile": "minimal"}


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "keys.txt"


def rules(path, name: str, words: str) -> None:
    """Put rules behind a tenant's hashes, as a person would with an editor."""
    lines = [f"{line} {words}" if line.startswith(f"{name} ") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def test_a_line_says_roles_and_rates_and_without_them_all_is_allowed():
    tenant = read_rules("lab", ["roles=predict,score", "requests=600/minute", "cells=2k/hour", "bytes=20GB/day"])
    assert tenant.roles == {"predict", "score"}
    assert dict(tenant.rates) == {
        "requests": Rate(600, 60.0), "cells": Rate(2000, 3600.0), "bytes": Rate(20 * 10**9, 86400.0),
    }  # fmt: skip
    assert read_rules("lab", []) == Tenant("lab")
    assert Tenant("lab").roles == {"predict", "score", "admin"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("role=predict", "did you mean roles="),
        ("roles=", "roles are predict, score, admin"),
        ("roles=predict,root", "roles are"),
        ("cells=many", "600/minute"),
        ("cells=5/fortnight", "times are"),
        ("cells=0/day", "cells=0/day"),
        ("cells=-5/day", "600/minute"),
        ("cells", "is no rule"),
    ],
)
def test_a_bad_rule_is_named_with_its_line(key_file, words, message):
    key_file.write_text(f"# keys\nlab sha256:{'0' * 64} {words}\nother sha256:{'1' * 64} roles=score\n")
    with pytest.raises(ConfigError, match="line 2") as refused:
        read_keys(key_file)
    assert message in str(refused.value)


def test_two_names_with_one_key_are_refused(key_file):
    key_file.write_text(f"a sha256:{'0' * 64}\nb sha256:{'0' * 64}\n")
    with pytest.raises(ConfigError, match="line 2: another name has the same key"):
        read_keys(key_file)


def test_a_changed_key_file_is_read_again_and_a_broken_one_changes_nothing(key_file, monkeypatch, caplog):
    monkeypatch.setattr("steval.service.http.keys.LOOK_SECONDS", 0.0)
    first = add_key(key_file, "lab")
    keys = KeyFile(key_file)
    second = add_key(key_file, "other")
    assert (keys.ring().owner(first), keys.ring().owner(second)) == ("lab", "other")
    good = key_file.read_text()
    with caplog.at_level(logging.ERROR):
        key_file.write_text(good + "nonsense\n")
        assert keys.ring().owner(second) == "other"
    assert "stay valid" in caplog.text
    key_file.unlink()
    assert keys.ring().owner(first) == "lab"
    key_file.write_text(good.splitlines()[1] + "\n")
    assert (keys.ring().owner(first), keys.ring().owner(second)) == (None, "other")
    key_file.write_text("# all revoked\n")
    assert keys.ring().owner(second) is None


def test_a_key_is_rotated_in_three_steps_and_keeps_its_rules(key_file):
    old = add_key(key_file, "lab")
    other = add_key(key_file, "other")
    rules(key_file, "lab", "roles=predict cells=5/day")
    key_file.chmod(0o640)
    result = CliRunner().invoke(app, ["serve", "--rotate-key", "lab", "--api-key-file", str(key_file)])
    new = result.stdout.strip()
    assert result.exit_code == 0, result.output
    ring = read_keys(key_file)
    assert [ring.owner(key) for key in (old, new, other)] == ["lab", "lab", "other"]
    assert ring.tenant(new) == ring.tenant(old) == read_rules("lab", ["roles=predict", "cells=5/day"])
    assert key_file.stat().st_mode & 0o777 == 0o640
    newest = rotate_key(key_file, "lab")
    ring = read_keys(key_file)
    assert [ring.owner(key) for key in (old, new, newest)] == [None, "lab", "lab"]
    with pytest.raises(ConfigError, match="no key named 'nobody'; it has lab, other"):
        rotate_key(key_file, "nobody")
    for arguments in (
        ["--rotate-key", "lab"],
        ["--rotate-key", "a", "--new-key", "b", "--api-key-file", str(key_file)],
    ):
        assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 2


def test_buckets_fill_evenly_and_say_when_there_is_enough(tmp_path):
    now = [1000.0]
    quotas = Quotas(lambda: tmp_path / "quotas", clock=lambda: now[0])
    tenant = Tenant("lab", rates={"cells": Rate(100, 60.0)})
    quotas.take(tenant, "cells", 70)
    quotas.take(tenant, "cells", 30)
    with pytest.raises(ServiceError, match="100 a minute") as refused:
        quotas.take(tenant, "cells", 10)
    assert (refused.value.http_status, refused.value.retry_after) == (429, pytest.approx(6.0))
    now[0] += 6.0
    quotas.take(tenant, "cells", 10)
    quotas.charge(tenant, "cells", -40)
    quotas.take(tenant, "cells", 40)
    now[0] += 1e6
    quotas.take(tenant, "cells", 100)  # never more than the bucket holds
    with pytest.raises(ServiceError):
        quotas.take(tenant, "cells", 1)
    now[0] -= 5000.0  # a clock that is set back refuses nobody for hours
    with pytest.raises(ServiceError) as refused:
        quotas.take(tenant, "cells", 1)
    assert refused.value.retry_after < 1
    quotas.take(tenant, "requests", 10**9)  # without a rate there is no limit
    with pytest.raises(ServiceError, match="100 a minute in all") as refused:
        quotas.take(tenant, "cells", 101)
    assert (refused.value.http_status, refused.value.retry_after) == (413, None)


def test_what_is_refused_costs_nothing(tmp_path):
    """Of several amounts all are taken or none; what fails gives them back."""
    quotas = Quotas(lambda: tmp_path, clock=lambda: 0.0)
    charge = Charge(quotas, Tenant("lab", rates={"jobs": Rate(1, 60.0), "cells": Rate(10, 60.0)}))
    for amounts in ({"jobs": 1, "cells": 11}, {"cells": 10, "jobs": 2}):
        with pytest.raises(ServiceError), charge.taken(amounts):
            raise AssertionError
    with pytest.raises(KeyError), charge.taken({"jobs": 1, "cells": 10}):
        raise KeyError
    with charge.taken({"jobs": 1, "cells": 10}):
        pass
    for kind in ("jobs", "cells"):
        with pytest.raises(ServiceError), charge.taken({kind: 1}):
            raise AssertionError
    with taken(None, {"jobs": 9}):
        pass


def test_bytes_are_charged_afterwards_and_make_the_next_request_wait(tmp_path):
    now = [0.0]
    quotas = Quotas(lambda: tmp_path, clock=lambda: now[0])
    tenant = Tenant("lab", rates={"bytes": Rate(1000, 60.0)})
    quotas.require(tenant, "bytes")
    quotas.charge(tenant, "bytes", 3000)
    with pytest.raises(ServiceError) as refused:
        quotas.require(tenant, "bytes")
    assert refused.value.retry_after == pytest.approx(120.06)
    now[0] += 121
    quotas.require(tenant, "bytes")


def test_buckets_are_shared_by_workers_apart_for_tenants_and_survive_damage(tmp_path):
    quotas = [Quotas(lambda: tmp_path, clock=lambda: 0.0) for _ in range(2)]
    one, two = (Tenant(name, rates={"jobs": Rate(1, 60.0)}) for name in ("..", "../.."))
    quotas[0].take(one, "jobs")
    with pytest.raises(ServiceError):
        quotas[1].take(one, "jobs")
    quotas[1].take(two, "jobs")
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}
    for path in tmp_path.iterdir():
        path.write_text("[1, ")
    quotas[0].take(one, "jobs")


class Keyed:
    """A service of two tenants and an operator."""

    def __init__(self, url: str, key_file, keys: dict[str, str]):
        self.url, self.key_file, self.keys = url, key_file, keys
        self.jobs = key_file.parent / "jobs"

    def client(self, name: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.keys[name]}, timeout=60)


@pytest.fixture(scope="module")
def keyed(service_url, tiny_checkpoint, service_dir, tmp_path_factory):
    """Started after the service that all tests share, which has no keys."""
    directory = tmp_path_factory.mktemp("tenants")
    path = directory / "keys.txt"
    keys = {name: add_key(path, name) for name in ("ada@lab", "bob@lab", "boss@lab", "poor@lab", "ivy@lab", "max@lab")}
    rules(path, "ada@lab", "roles=predict,score")
    rules(path, "bob@lab", "roles=predict,score")
    rules(path, "poor@lab", "roles=predict requests=1k/day cells=50/day")
    rules(path, "ivy@lab", "roles=predict,score jobs=1/day cells=100/day")
    rules(path, "max@lab", "roles=predict cells=40/day")
    with second_service(
        checkpoint=str(tiny_checkpoint), data_dir=str(service_dir / "data"), job_dir=str(directory / "jobs"),
        api_key_file=str(path), threads="1",
    ) as url:  # fmt: skip
        yield Keyed(url, path, keys)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def told(answer: httpx.Response) -> tuple[str, dict[str, str]]:
    """An error and its headers without what differs from request to request and from id to id."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    return re.sub(r'"request_id": *"[^"]*"|[0-9a-f]{32}', "ID", answer.text), headers


@contextlib.contextmanager
def job_of(directory: Path, owner: str, state: str) -> Generator[str, None, None]:
    """A job of a key's in a state, which no worker runs meanwhile; with a file where it is done."""
    is_prediction = directory.name == "predictions"
    store = JobStore(directory, PredictionJob if is_prediction else ScoreJob, max_jobs=100, ttl=3600)
    job_id = store.reserve(owner)
    with store.claim(job_id) as ours:
        assert ours
        job = store.submit(job_id, {})
        if state == "running":
            store.write(started(job))
        elif state != "queued":
            (store.path(job_id) / SCORE).mkdir()
            name = "predictions.h5ad" if is_prediction else "score.json"
            (store.path(job_id) / SCORE / name).write_text("{}")
            store.finish(job, state=state, files=[name] if state == "done" else [])
        yield job_id
        store.remove(job_id)


@pytest.mark.parametrize("state", get_args(JobState))
def test_one_key_sees_nothing_of_what_another_does(keyed, state):
    with (
        keyed.client("ada@lab") as ada, keyed.client("bob@lab") as bob, keyed.client("boss@lab") as boss,
        job_of(keyed.jobs, "ada@lab", state) as job, job_of(keyed.jobs / "predictions", "ada@lab", state) as prediction,
    ):  # fmt: skip
        expected = 200 if state == "done" else 409
        assert ada.get(f"/score/{job}/result").status_code == expected
        assert ada.get(f"/predictions/{prediction}/result").status_code == expected
        nowhere = "0" * 32
        for method, path, mine in (
            ("GET", "/score/{}", job), ("GET", "/score/{}/result", job), ("GET", "/score/{}/files/score.json", job),
            ("DELETE", "/score/{}", job), ("GET", "/predictions/{}", prediction), ("GET", "/predictions/{}/result", prediction),
            ("DELETE", "/predictions/{}", prediction),
        ):  # fmt: skip
            for client in (bob, boss):
                others, none = client.request(method, path.format(mine)), client.request(method, path.format(nowhere))
                assert error(others) == error(none) == (404, "unknown_job")
                assert told(others) == told(none)
        for listing, mine in (("/score", job), ("/predictions", prediction)):
            assert [one["id"] for one in ada.get(listing).json()["jobs"]] == [mine]
            assert bob.get(listing).json() == boss.get(listing).json() == {"jobs": []}
        assert (
            ada.get(f"/score/{job}").json()["state"] == ada.get(f"/predictions/{prediction}").json()["state"] == state
        )
        seen = "".join(bob.get(path).text for path in ("/models", "/model", "/perturbations", "/openapi.json", "/"))
        assert "ada@lab" not in seen
        assert not [one for one in (job, prediction) if one in seen]
        assert error(bob.get("/metrics")) == (403, "forbidden_role")
        metrics = boss.get("/metrics").text
        assert not [word for word in ("ada@lab", "bob@lab", "boss@lab", "poor@lab", job, prediction) if word in metrics]


def answers(client: httpx.Client, ids: list[str]) -> list[tuple[str, str, int, tuple[str, dict[str, str]]]]:
    """What a key is answered wherever it may ask, about `ids` too."""
    predicted = {"perturbations": ["TET1"], "cells": 16, "seed": 91}
    asked: list[tuple[str, str, dict[str, object]]] = []
    for route in ROUTES:
        paths = [route.path.replace("{id}", one) for one in ids] if "{id}" in route.path else [route.path]
        for path in paths:
            path = re.sub(r"{[a-z]+}", "score.json", path)
            asked += [(operation.method, path, {}) for operation in route.operations if operation.method != "POST"]
    asked += [("HEAD", path, {}) for method, path, _ in asked if method == "GET"]
    for body in ({}, {"perturbations": ["NOPE"]}, predicted, {**predicted, "cells": 10**6}):
        asked.append(("POST", "/predict", {"json": body}))
    asked += [("POST", path, {"json": {"typo": 1}}) for path in ("/predictions", "/score")]
    asked.append(("POST", "/score", {"json": {"predictions": "nowhere.h5ad"}}))
    found = []
    for method, path, content in asked:
        answer = client.request(method, path, **content)
        found.append((method, re.sub("[0-9a-f]{32}", "ID", path), answer.status_code, told(answer)))
    return found


def test_nothing_that_a_key_is_answered_depends_on_what_another_has_done(keyed):
    """Everything one key can ask, before another does anything and when it has jobs, answers and used quotas."""
    body = {"perturbations": ["TET1"], "cells": 16, "seed": 91}
    nowhere = [f"{number:032x}" for number in range(2 * len(get_args(JobState)))]
    with keyed.client("ada@lab") as ada, keyed.client("max@lab") as third, keyed.client("bob@lab") as bob:
        answers(bob, nowhere)  # what it was given itself is remembered from here on
        before = answers(bob, nowhere)
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(job_of(keyed.jobs, "ada@lab", state)) for state in get_args(JobState)]
            jobs += [
                stack.enter_context(job_of(keyed.jobs / "predictions", "ada@lab", state))
                for state in get_args(JobState)
            ]
            assert ada.post("/predict", json=body).status_code == 200
            seeds = itertools.count()
            while third.post("/predict", json=body | {"seed": next(seeds)}).status_code == 200:
                pass
            after = answers(bob, jobs)
        assert [(one, other) for one, other in zip(before, after, strict=True) if one != other] == []


@pytest.mark.parametrize("role", ["predictions", "real", "train"])
def test_no_key_names_the_files_of_anothers_job(keyed, service_dir, role):
    with job_of(keyed.jobs, "ada@lab", "queued") as job, keyed.client("bob@lab") as bob:
        secret = keyed.jobs / job / INPUTS / "predictions.h5ad"
        shutil.copy(service_dir / "data" / "cells.h5ad", secret)
        for path in (secret, keyed.jobs / ("0" * 32) / INPUTS / "predictions.h5ad"):
            refused = bob.post("/score", json={"predictions": "cells.h5ad"} | {role: str(path)})
            assert error(refused) == (422, "no_such_data")


def test_an_answer_that_one_key_was_given_is_computed_again_for_another(keyed):
    def computed() -> float:
        with keyed.client("boss@lab") as boss:
            lines = boss.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("steval_predicted_cells_total"))

    body = {"perturbations": ["TET1"], "cells": 16, "seed": 77}
    with keyed.client("ada@lab") as ada, keyed.client("bob@lab") as bob:
        counts = [computed()]
        for client in (ada, ada, bob, bob):
            assert client.post("/predict", json=body).status_code == 200
            counts.append(computed())
    assert [after - before for before, after in itertools.pairwise(counts)] == [16, 0, 16, 0]


def test_the_tag_of_an_answer_says_nothing_of_who_has_asked(keyed, http):
    body = {"perturbations": ["TET1"], "cells": 16, "seed": 78}
    tag = http.post("/predict", json=body).headers["etag"]  # of another service with the same checkpoint
    with keyed.client("ada@lab") as ada, keyed.client("bob@lab") as bob:
        asked = [bob.post("/predict", json=body, headers={"if-none-match": tag}) for _ in range(2)]
        ada.post("/predict", json=body)
        asked.append(bob.post("/predict", json=body, headers={"if-none-match": tag}))
    assert [one.status_code for one in asked] == [304] * 3  # nobody had asked, ada had
    assert told(asked[0]) == told(asked[1]) == told(asked[2])


def test_a_job_in_the_background_leaves_no_answer_to_be_found(keyed):
    body = {"perturbations": ["MED12"], "cells": 16, "seed": 79, "output": "mean"}
    with keyed.client("ada@lab") as ada, keyed.client("bob@lab") as bob, keyed.client("boss@lab") as boss:
        job = ada.post("/predictions", json=body).json()["id"]
        deadline = time.monotonic() + 120
        while ada.get(f"/predictions/{job}").json()["state"] != "done":
            assert time.monotonic() < deadline
            assert error(bob.get(f"/predictions/{job}")) == (404, "unknown_job")
            time.sleep(0.1)
        before = cache_misses(boss)
        assert bob.post("/predict", json=body).status_code == ada.post("/predict", json=body).status_code == 200
        assert cache_misses(boss) == before + 2
        assert ada.delete(f"/predictions/{job}").status_code == 204


def cache_misses(boss: httpx.Client) -> float:
    (line,) = [
        one for one in boss.get("/metrics").text.splitlines() if one.startswith('steval_cache_total{result="miss"}')
    ]
    return float(line.split()[-1])


def test_roles_open_what_they_name_and_nothing_else(keyed):
    with keyed.client("poor@lab") as poor, keyed.client("boss@lab") as boss:
        assert error(poor.post("/score", json=PROFILE)) == (403, "forbidden_role")
        assert error(poor.get("/score/" + "0" * 32)) == (403, "forbidden_role")
        assert "'score'" in poor.post("/score", json=PROFILE).json()["error"]["message"]
        assert poor.get("/models").status_code == poor.get("/model").status_code == 200
        assert boss.get("/metrics").status_code == 200


def test_a_quota_that_is_used_up_is_429_with_the_time_and_others_go_on(keyed):
    body = {"perturbations": ["STAT1"], "cells": 30}
    with keyed.client("poor@lab") as poor, keyed.client("bob@lab") as bob:
        assert poor.post("/predict", json=body).status_code == 200
        refused = poor.post("/predict", json={**body, "seed": 1})
        assert error(refused) == (429, "quota_used")
        assert 10 * 86400 / 50 - 60 <= int(refused.headers["retry-after"]) <= 10 * 86400 / 50
        assert error(poor.post("/predict", json={**body, "cells": 51})) == (413, "over_quota")
        assert poor.post("/predict", json={**body, "cells": 20}).status_code == 200
        assert poor.post("/predict", json=body).status_code == 200  # computed before: no cells
        assert bob.post("/predict", json=body).status_code == 200


def test_a_submission_that_is_refused_costs_no_job(keyed):
    screen = {"perturbations": ["STAT1"], "cells": 60}
    with keyed.client("ivy@lab") as ivy:
        for body, status in (({**PROFILE, "predictions": "nowhere.h5ad"}, 422), ({**PROFILE, "typo": 1}, 400)):
            assert ivy.post("/score", json=body).status_code == status
        assert error(ivy.post("/predictions", json={**screen, "cells": 101})) == (413, "over_quota")
        assert ivy.post("/predictions", json=screen).status_code == 202
        assert error(ivy.post("/predictions", json=screen)) == (429, "quota_used")
        assert error(ivy.post("/score", json=PROFILE)) == (429, "quota_used")


def test_keys_come_and_go_without_a_restart(keyed):
    key = add_key(keyed.key_file, "late")
    deadline = time.monotonic() + 20
    with httpx.Client(base_url=keyed.url, headers={"Authorization": f"Bearer {key}"}) as late:
        while late.get("/model").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        text = keyed.key_file.read_text()
        keyed.key_file.write_text("".join(line + "\n" for line in text.splitlines() if not line.startswith("late ")))
        while late.get("/model").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with keyed.client("ada@lab") as ada:
        assert ada.get("/model").status_code == 200


def test_every_request_leaves_a_line_with_the_name_of_its_key_and_never_the_key(keyed):
    records: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, logger = Kept(), logging.getLogger("steval.service.http.access")
    logger.addHandler(handler)
    try:
        with keyed.client("ada@lab") as ada:
            answers = [
                ada.post("/predict", json={"perturbations": ["STAT1"], "cells": 7}),
                ada.post("/predict", json={"perturbations": ["NOPE"], "cells": 7}),
                ada.get("/metrics"),
                httpx.get(keyed.url + "/model", headers={"X-API-Key": "stv_wrong"}),
            ]
        ids = [answer.headers["x-request-id"] for answer in answers]
        # a line follows its answer: that of an earlier test's request may be among these, the last one may be yet to come
        deadline = time.monotonic() + 20
        while not {*ids} <= {record.request_id for record in records}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        logger.removeHandler(handler)
    records = [record for record in records if record.request_id in ids]
    lines = [(one.key, one.route, one.status, one.code, getattr(one, "cells", None)) for one in records]
    assert lines == [
        ("ada@lab", "/predict", 200, None, 7),
        ("ada@lab", "/predict", 404, "unknown_perturbation", 7),
        ("ada@lab", "/metrics", 403, "forbidden_role", None),
        (None, "/model", 401, "unauthorised", None),
    ]
    text = "".join(str(vars(record)) for record in records)
    assert not [key for key in [*keyed.keys.values(), "stv_wrong"] if key in text]
