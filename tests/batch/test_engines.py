"""The engines with real processes: the same tables from both, workers and runners that are killed, poisoned tasks."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from steval.batch.engines.base import Engine
from steval.batch.engines.local import LocalEngine
from steval.batch.jobs import Outcome, Task
from steval.batch.ledger import Ledger, ledger_path
from steval.batch.run import make_engine
from steval.batch.runner import Runner
from steval.batch.settings import Running
from steval.batch.work.stages import job_stages
from steval.data.files import require_directory
from steval.errors import ConfigError
from steval.machine import available_memory
from support.batch_cases import start_batch, write_manifest
from support.engine_cases import RAY, descendants, engine_of, needs_ray, wait_for_children
from support.in_process import plan_of, run_in_process

ONE = {"checkpoints": ["models/a.safetensors"], "data": [{"real": "data/packaged.h5ad", "train": "train.h5ad"}]}


@pytest.fixture(scope="module")
def expected(case: Path) -> dict[str, pl.DataFrame]:
    """Tables of the whole case, made without any processes."""
    path = write_manifest(case, "expected")
    run_in_process(path)
    return tables(path)


def tables(manifest: Path) -> dict[str, pl.DataFrame]:
    """Every table of every job, and the leaderboard without what names places."""
    plan = plan_of(manifest)
    root = plan.layout.root
    found = {str(path.relative_to(root)): pl.read_csv(path) for path in sorted(root.glob("jobs/*/score/*.csv"))}
    from steval.batch.leaderboard import build_leaderboard

    return {**found, "leaderboard": build_leaderboard(plan)}


def assert_same(found: dict[str, pl.DataFrame], wanted: dict[str, pl.DataFrame]) -> None:
    """Identical after rounding to 1e-6."""
    assert found.keys() == wanted.keys()
    assert len(found) == 4 * 8 + 1
    for name in found:
        ours, theirs = (one[name].with_columns(pl.selectors.float().round(6)) for one in (found, wanted))
        assert ours.equals(theirs), name


def first_task(manifest: Path) -> Task:
    plan = plan_of(manifest)
    task = job_stages(plan.jobs[0], plan)[0][0]
    require_directory(task.output.parent)
    return task


def finish(engine: Engine, count: int = 1, seconds: float = 180.0) -> list[Outcome]:
    """Wait for outcomes."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while len(outcomes) < count:
        assert time.monotonic() < deadline, "the engine gave no outcome"
        outcomes += engine.wait(0.5)
    return outcomes


def test_local_engine_replaces_a_killed_worker_and_gives_up_on_a_poisoned_task(case: Path):
    task = first_task(write_manifest(case, "local-kill", **ONE, requests=[{"name": "x", "do": "predict"}]))
    engine = LocalEngine(Running(workers=1, retries=1))
    try:
        engine.submit(task)
        engine._workers[0].process.kill()
        (outcome,) = finish(engine)
        assert outcome.error is None
        assert task.output.exists()
        task = replace(task, output=task.output.with_name("poisoned.h5ad"))
        engine.submit(task)
        for _ in range(2):
            (worker,) = engine._workers
            os.kill(worker.process.pid, signal.SIGKILL)
            outcomes = engine.wait(30)
        (outcome,) = outcomes or finish(engine)
        assert outcome.error_kind == "WorkerDied"
        assert "died 2 times (signal 9)" in (outcome.error or "")
        assert not list(task.output.parent.glob("poisoned*"))
    finally:
        engine.close()


def test_local_engine_stays_within_memory_and_workers(case: Path):
    task = first_task(write_manifest(case, "local-memory", **ONE))
    engine = LocalEngine(Running(workers=3, memory_gb=2 * task.memory * 1.5 / 2**30))
    try:
        for number in range(4):
            engine.submit(replace(task, output=task.output.with_name(f"m{number}.h5ad"), memory=int(task.memory * 1.4)))
        assert sum(worker.task is not None for worker in engine._workers) == 2
        assert engine.capacity == 6
    finally:
        engine.close()
    assert available_memory() > 2**28


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="machine_gpus is 0"):
        make_engine(Running(gpus=1, machine_gpus=0))


@needs_ray
def test_a_ray_cluster_that_is_not_there_is_said_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with pytest.raises(ConfigError, match=f"no Ray cluster answers at {given} .*ray start --head"):
                make_engine(Running(engine="ray", address=given))


@needs_ray
def test_a_node_that_does_not_come_up_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup")  # as Ray does, of no kind of its own

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        ConfigError, match=r"cannot start Ray \(a fresh cluster on this machine\): The current node timed out"
    ):
        make_engine(Running(engine="ray", workers=1))


def test_workers_end_with_their_runner(case: Path):
    manifest = write_manifest(case, "orphans", **ONE)
    process = start_batch(manifest)
    try:
        workers = wait_for_children(process.pid)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_five_times_at_random_the_tables_are_the_same(case: Path, expected: dict[str, pl.DataFrame]):
    manifest = write_manifest(case, "killed")
    chance = random.Random(20251122)
    kills = 0
    while kills < 5:
        process = start_batch(manifest)
        try:
            process.wait(chance.uniform(1.5, 4.0))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if process.returncode == 0:  # a quick machine was done first: it has something to do again
            shutil.rmtree(chance.choice(sorted((case / "killed.batch" / "jobs").iterdir())))
        else:
            assert process.returncode == -signal.SIGKILL
    process = start_batch(manifest, "--json")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert_same(tables(manifest), expected)
    assert len(list((case / "killed.batch" / "jobs").iterdir())) == 4
    assert not list((case / "killed.batch").rglob("*.part"))


@pytest.mark.parametrize("name", [pytest.param("local", marks=pytest.mark.slow), RAY])
def test_two_workers_give_the_same_tables(case: Path, expected: dict[str, pl.DataFrame], name: str):
    manifest = write_manifest(case, name)
    plan = plan_of(manifest)
    with Ledger(ledger_path(plan.layout.root, None)) as ledger, engine_of(name, workers=2) as engine:
        assert len(Runner(plan, plan.jobs, ledger, engine).run().finished) == 4
    assert_same(tables(manifest), expected)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
def test_ray_retries_a_killed_worker_and_gives_up_on_a_poisoned_task(case: Path):
    manifest = write_manifest(case, "ray-kill", **ONE, requests=[{"name": "x", "do": "predict"}])
    task = first_task(manifest)
    engine = make_engine(Running(engine="ray", workers=1, retries=1))
    try:
        engine.submit(task)
        kill_ray_worker()
        (outcome,) = finish(engine)
        assert outcome.error is None, outcome
        assert task.output.exists()
        poisoned = replace(task, output=task.output.with_name("poisoned.h5ad"))
        engine.submit(poisoned)
        first = kill_ray_worker()
        kill_ray_worker(other_than=first)
        (outcome,) = finish(engine)
        assert outcome.error_kind == "WorkerDied"
        lost = replace(task, job=task.job.model_copy(update={"real": moved(task)}), output=task.output.with_name("l"))
        engine.submit(lost)
        (outcome,) = finish(engine)
        assert "was there when the batch was planned" in (outcome.error or "")
        late = replace(task, output=task.output.with_name("late.h5ad"), seconds=0.001)
        engine.submit(late)
        (outcome,) = finish(engine)
        assert (outcome.error_kind, late.output.exists()) == ("WorkerDied", False), "its time was over"
        engine.submit(replace(late, seconds=600.0))
        (outcome,) = finish(engine)
        assert outcome.error is None, outcome
    finally:
        engine.close()


def moved(task: Task):
    assert task.job.real is not None
    return task.job.real.model_copy(update={"place": "/nowhere/lost.h5ad"})


def kill_ray_worker(other_than: int | None = None, seconds: float = 60.0) -> int:
    """Kill the Ray worker of this process that is in a task."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for child, command in descendants(os.getpid()):
            if command.startswith(b"ray::_perform") and child != other_than:
                os.kill(child, signal.SIGKILL)
                return child
        time.sleep(0.02)
    raise AssertionError("no Ray worker was in a task")
