"""Nothing hangs: workers that are stopped or die unread, outcomes of another runner, loops without work, other clocks."""

import logging
import os
import random
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from steval.batch.engines import local
from steval.batch.engines.local import LocalEngine
from steval.batch.identity import RunnerIdentity, own_identity
from steval.batch.jobs import Outcome, Task
from steval.batch.ledger import Ledger, ledger_path
from steval.batch.runner import Runner
from steval.batch.settings import Running
from steval.batch.work.stages import job_stages
from steval.data.files import require_directory
from steval.errors import BatchError, ConfigError
from steval.predictor.requests import RequestItem
from support.batch_cases import write_manifest
from support.in_process import InProcessEngine, plan_of, run_in_process

PREDICT = {
    "checkpoints": ["models/a.safetensors"],
    "data": [{"real": "data/packaged.h5ad"}],
    "requests": [{"name": "x", "do": "predict", "cells": 5}],
}
MOMENTS = int(os.environ.get("STEVAL_TEST_MOMENTS", "3"))
"""Random moments at which a worker is stopped or killed."""


def done_task(case: Path, name: str, **changes) -> Task:
    """A task whose output is there already: a worker has nothing to do but to read it and say so."""
    plan = plan_of(write_manifest(case, name, **PREDICT))
    task = replace(job_stages(plan.jobs[0], plan)[0][0], **changes)
    require_directory(task.output.parent)
    task.output.touch()
    return task


def outcome_of(engine: LocalEngine) -> Outcome:
    while True:
        for outcome in engine.wait(0.2):
            return outcome


@pytest.fixture
def engine():
    made = LocalEngine(Running(workers=1, retries=1))
    yield made
    made.close()


def test_workers_that_die_before_they_read_a_large_task_are_given_up(case: Path, engine: LocalEngine):
    task = done_task(case, "unread")
    items = tuple(RequestItem(perturbation=f"perturbation number {number}") for number in range(20_000))
    engine.submit(replace(task, job=task.job.model_copy(update={"items": items})))
    outcomes: list[Outcome] = []
    while not outcomes:
        engine._workers[0].process.kill()
        outcomes = engine.wait(5.0)
    assert outcomes[0].error_kind == "WorkerDied"
    assert "died 2 times (signal 9)" in (outcomes[0].error or "")


def test_a_worker_that_never_starts_is_stopped_and_its_task_given_up(case: Path, engine: LocalEngine, monkeypatch):
    monkeypatch.setattr(local, "START_SECONDS", 0.0)
    engine.submit(done_task(case, "unstarted"))
    outcome = outcome_of(engine)
    assert "died 2 times (it did not start within 0 s, and was stopped" in (outcome.error or "")


def test_a_worker_that_stands_still_is_stopped_and_another_does_its_task(case: Path, engine: LocalEngine):
    engine.submit(done_task(case, "still"))
    assert outcome_of(engine).error is None
    (worker,) = engine._workers
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGSTOP)
    task = done_task(case, "still", seconds=0.5)
    engine.submit(task)
    outcome = outcome_of(engine)
    assert (outcome.error, outcome.task) == (None, task)
    assert engine._workers[0] is not worker


def test_a_worker_that_died_idle_is_no_tasks_fault(case: Path):
    engine = LocalEngine(Running(workers=1, retries=0))
    try:
        engine.submit(done_task(case, "idle"))
        assert outcome_of(engine).error is None
        engine._workers[0].process.kill()
        engine._workers[0].process.join()
        engine.submit(done_task(case, "idle"))
        assert outcome_of(engine).error is None
    finally:
        engine.close()


def test_outcomes_of_a_runner_that_has_ended_are_not_those_of_the_next(case: Path, engine: LocalEngine):
    ours, theirs = done_task(case, "owned", owner="ours"), done_task(case, "owned", owner="theirs")
    engine.submit(theirs)
    engine.submit(replace(theirs, output=theirs.output.with_name("waits.h5ad")))
    engine.withdraw("theirs")
    engine.submit(ours)
    assert outcome_of(engine).task == ours
    assert not theirs.output.with_name("waits.h5ad").exists()


def test_a_loop_that_cannot_go_on_says_so_and_ends(case: Path, monkeypatch):
    """Not known to happen: a task that gets lost between runner and engine."""
    plan = plan_of(write_manifest(case, "lost", **PREDICT))
    with Ledger(ledger_path(plan.layout.root, None)) as ledger:
        runner = Runner(plan, plan.jobs, ledger, InProcessEngine())
        monkeypatch.setattr(runner, "_settle", lambda outcome: None)
        with pytest.raises(BatchError, match="stands still: 1 job waits for 3 tasks that nobody does"):
            runner.run()
        assert ledger.states([plan.jobs[0].key])[plan.jobs[0].key].state == "free"


def test_too_few_addresses_are_refused_before_a_worker_hangs(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**29, resource.RLIM_INFINITY))
    with pytest.raises(ConfigError, match=r"512\.0 MiB of addresses \(ulimit -v\).*at least 1\.5 GiB.*unlimited"):
        LocalEngine(Running(workers=1))


def test_a_dead_runner_whose_clock_was_ahead_holds_nothing_for_long(tmp_path: Path, monkeypatch):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        them, us = RunnerIdentity("other/1/x", "other", 1, "5"), own_identity()
        ledger.join(us)
        now = time.time()
        with monkeypatch.context() as ahead:
            ahead.setattr(time, "time", lambda: now + 7 * 24 * 3600)
            ledger.join(them)
            ledger.claim("k", "job", them, 0.05, now)
        assert ledger.claim("k", "job", us, 0.05, now) == "held"
        with monkeypatch.context() as ahead:
            ahead.setattr(time, "time", lambda: now + 7 * 24 * 3600 + 1)
            ledger.beat(them)
        time.sleep(0.06)
        assert ledger.claim("k", "job", us, 0.05, now) == "held", "it has shown life since"
        time.sleep(0.06)
        assert ledger.claim("k", "job", us, 0.05, now) == "claimed"


def test_who_waits_for_others_says_for_whom(case: Path, caplog):
    plan = plan_of(write_manifest(case, "held", **PREDICT))
    job = plan.jobs[0]
    with Ledger(ledger_path(plan.layout.root, None)) as ledger, caplog.at_level(logging.INFO):
        them = RunnerIdentity("far/7/x", "far:pid:[1]", 7, "5")
        ledger.join(them)
        ledger.claim(job.key, job.name, them, 60.0, time.time())
        runner = Runner(plan, plan.jobs, ledger, InProcessEngine())
        threading.Timer(0.5, lambda: Ledger(ledger.path).leave(them)).start()
        assert runner.run().finished == [job.name]
    assert "waiting for 1 job that others hold: process 7 on far" in caplog.text


@pytest.mark.slow
def test_stopped_and_killed_at_random_the_predictions_are_the_same(case: Path):
    values = {**PREDICT, "data": [{"real": "data/*.h5ad"}], "chunk": 1}
    quiet = write_manifest(case, "undisturbed", **values)
    assert len(run_in_process(quiet).finished) == 2
    plan = plan_of(write_manifest(case, "disturbed", **values, run={"workers": 2, "retries": 1000, "task_seconds": 30}))
    chance, ended, done = random.Random(13), threading.Event(), []
    engine = LocalEngine(plan.manifest.run)

    def disturb() -> None:
        while not ended.wait(chance.uniform(0.2, 4.0)) and len(done) < MOMENTS:
            for worker in chance.sample(engine._workers, min(1, len(engine._workers))):
                how = chance.choice([signal.SIGSTOP, signal.SIGKILL])
                if worker.task is not None and worker.process.pid is not None and worker.process.is_alive():
                    os.kill(worker.process.pid, how)
                    done.append(how)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with Ledger(ledger_path(plan.layout.root, None)) as ledger:
            assert len(Runner(plan, plan.jobs, ledger, engine).run().finished) == 2
    finally:
        ended.set()
        thread.join()
        engine.close()
    assert done
    others = plan_of(quiet)
    for job, other in zip(plan.jobs, others.jobs, strict=True):
        assert plan.layout.predictions(job).read_bytes() == others.layout.predictions(other).read_bytes()
    assert not list(plan.layout.root.glob("jobs/**/*.part"))
