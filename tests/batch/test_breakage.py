"""What breaks during a batch: data, on every engine; the disk; Ctrl-C. The reason is told and the next run goes on."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import anndata as ad
import pytest

from steval.batch.jobs import Task, read_json
from steval.batch.leaderboard import build_leaderboard
from steval.batch.ledger import Ledger, ledger_path
from steval.batch.runner import Runner
from support.batch_cases import CONTROL, start_batch, write_manifest
from support.engine_cases import RAY, engine_of, rows_of, tear, wait_for_children, write_compressed
from support.in_process import InProcessEngine, plan_of, run_in_process

REASONS = {
    "changed": "has changed since the batch was planned",
    "missing": "was there when the batch was planned and is not any more",
    "torn": "is damaged: /X/data cannot be read",
    "truncated": "has changed since the batch was planned",
}


def break_late(data: Path) -> None:
    """What may happen to files while a batch runs."""
    (data / "missing.h5ad").unlink()
    shutil.copy(data / "whole.h5ad", data / "changed.h5ad")
    os.truncate(data / "truncated.h5ad", 20_000)
    tear(data / "torn.h5ad", int(rows_of(ad.read_h5ad(data / "torn.h5ad"), CONTROL)[3]))


@pytest.mark.parametrize("name", ["in-process", pytest.param("local", marks=pytest.mark.slow), RAY])
def test_files_that_break_after_planning_fail_their_jobs_until_they_are_mended(case: Path, tmp_path: Path, name: str):
    data, good = tmp_path / "data", tmp_path / "good"
    good.mkdir()
    cells = ad.read_h5ad(case / "data" / "packaged.h5ad")
    for kind in (*REASONS, "whole"):
        cells.obs["batch"] = kind  # each file has its own content, and so its own jobs
        write_compressed(cells, good / f"{kind}.h5ad")
    shutil.copytree(good, data)
    values = {"checkpoints": [str(case / "models" / "a.safetensors")], "data": ["data/*.h5ad"]}
    manifest = write_manifest(tmp_path, **values, requests=[{"name": "x", "do": "predict", "cells": 5}])
    plan = plan_of(manifest)
    jobs = {job.data_name: job for job in plan.jobs}
    break_late(data)
    with Ledger(ledger_path(plan.layout.root, None)) as ledger, engine_of(name) as engine:
        counts = Runner(plan, plan.jobs, ledger, engine).run()
        assert counts.finished == ["a__whole__x"]
        states = ledger.states([job.key for job in plan.jobs])
        for kind, reason in REASONS.items():
            job = jobs[kind]
            record = read_json(plan.layout.directory(job) / "error.json") or {}
            assert reason in counts.failed[job.name]
            assert f"{kind}.h5ad" in record["error"] and reason in record["error"]
            assert record["kind"] == "DataError"
            assert (states[job.key].state, states[job.key].error) == ("failed", record["error"])
        board = build_leaderboard(plan)
        assert board["state"].to_list() == ["predicted", *["failed"] * 4]
        assert board["error"].null_count() == 1
        for kind in REASONS:
            shutil.copy2(good / f"{kind}.h5ad", data)
        counts = Runner(plan, plan.jobs, ledger, engine).run()
        assert (sorted(counts.finished), counts.reused) == ([f"a__{kind}__x" for kind in REASONS], 1)
        states = ledger.states([job.key for job in plan.jobs])
        assert {kind: states[job.key].starts for kind, job in jobs.items()} == {"whole": 1, **dict.fromkeys(REASONS, 2)}
    assert not list(plan.layout.root.rglob("error.json"))


@pytest.mark.parametrize("engine", [pytest.param("local", marks=pytest.mark.slow), RAY])
def test_damage_found_in_mid_job_is_exit_5_and_the_next_run_tries_again(case: Path, tmp_path: Path, engine: str):
    """Training cells: planning looks at their genes and labels, and reads no values."""
    train = ad.read_h5ad(case / "train.h5ad")
    write_compressed(train, tmp_path / "train.h5ad")
    tear(tmp_path / "train.h5ad", int(rows_of(train, "SRC")[3]))
    data = str(case / "data" / "synthetic.h5ad")
    values = {
        "checkpoints": [str(case / "models" / "a.safetensors")],
        "data": [{"real": data, "name": "whole"}, {"real": data, "name": "torn", "train": "train.h5ad"}],
        "score": {"bootstrap": 10},
    }
    manifest = write_manifest(tmp_path, **values, requests=[{"name": "x", "perturbations": ["SRC"], "cells": 20}])
    for number in (1, 2):
        process = start_batch(manifest, "--engine", engine, "--json")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 5, err
        assert "without a result: 1 of 2 jobs" in err and "a × torn × x: score: " in err
        assert "is damaged: /X/data cannot be read" in err and "Traceback" not in err
        result = json.loads(out)
        assert [(row["data"], row["state"]) for row in result["leaderboard"]] == [
            ("whole", "scored"),
            ("torn", "failed"),
        ]
        assert "is damaged" in result["leaderboard"][1]["error"]
        assert (result["finished"], result["reused"]) == ((1, 0) if number == 1 else (0, 1))
        assert "is damaged" in (tmp_path / "night.batch" / "leaderboard.html").read_text(encoding="utf-8")
        plan = plan_of(manifest)
        with Ledger(ledger_path(plan.layout.root, None)) as ledger:
            states = ledger.states([job.key for job in plan.jobs])
        assert sorted((state.state, state.starts) for state in states.values()) == [("done", 1), ("failed", number)]


@pytest.mark.parametrize("side", ["real", "pred"])
def test_damage_met_by_differential_expression_fails_its_job_until_it_is_mended(case: Path, tmp_path: Path, side: str):
    """The real cells, or the predictions, are torn after everything before the first task on them was done."""
    write_compressed(ad.read_h5ad(case / "data" / "synthetic.h5ad"), tmp_path / "real.h5ad")
    values = {
        "checkpoints": [str(case / "models" / "a.safetensors")],
        "data": ["real.h5ad"],
        "score": {"bootstrap": 10},
    }
    manifest = write_manifest(
        tmp_path, **values, requests=[{"name": "x", "perturbations": ["SRC", "STAT1"], "cells": 20}]
    )
    plan = plan_of(manifest)
    kept: dict[Path, bytes] = {}

    def tear_first(task: Task) -> None:
        path = tmp_path / "real.h5ad" if side == "real" else plan.layout.predictions(plan.jobs[0])
        if task.kind == "de" and task.side == side and not kept:
            kept[path] = path.read_bytes()
            cells = ad.read_h5ad(path)
            if side == "pred":
                write_compressed(cells, path)
            tear(path, int(rows_of(cells, "SRC")[3]))

    counts = run_in_process(manifest, InProcessEngine(tear_first), plan)
    assert (counts.finished, list(counts.failed)) == ([], [plan.jobs[0].name])
    assert "is damaged: /X/data cannot be read" in counts.failed[plan.jobs[0].name]
    for path, content in kept.items():
        path.write_bytes(content)
    assert run_in_process(manifest, plan=plan_of(manifest)).finished == [plan.jobs[0].name]


def test_a_full_disk_fails_the_job_in_one_line_and_leaves_nothing_under_a_final_name(case: Path, tmp_path: Path):
    values = {"checkpoints": [str(case / "models" / "a.safetensors")], "data": [str(case / "data" / "packaged.h5ad")]}
    manifest = write_manifest(tmp_path, **values, requests=[{"name": "x", "do": "predict"}], chunk=25)
    process = start_batch(manifest, "--workers", "1", most_kilobytes=1024)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "Traceback" not in err and "Exception ignored" not in err
    said = [line for line in err.splitlines() if "x: predict: cannot write" in line]
    assert len(said) == 2 and all(line.endswith("predict-00000.h5ad: File too large") for line in said), err
    assert not list((tmp_path / "night.batch").rglob("*.h5ad*"))
    assert not list((tmp_path / "night.batch").rglob("*.part"))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_say_one_line_end_the_workers_and_the_next_run_goes_on(
    case: Path, tmp_path: Path, number: int, code: int, word: str
):
    values = {"checkpoints": [str(case / "models" / "a.safetensors")], "data": [str(case / "data" / "packaged.h5ad")]}
    manifest = write_manifest(tmp_path, **values, requests=[{"name": "x", "do": "predict"}])
    process = start_batch(manifest, "--json")
    workers = wait_for_children(process.pid)
    for worker in workers:
        (blocked,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker}/status").read_text())
        assert int(blocked, 16) & 1 << (signal.SIGINT - 1)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err and "Process Spawn" not in err and err.splitlines()[-1].startswith(word)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(run_in_process(manifest).finished) == 1
