"""Running: the right results, nothing twice, and broken jobs that leave the others alone."""

import shutil
import time
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest

from steval.batch.jobs import Outcome, Task, read_json
from steval.batch.leaderboard import SCHEMA, build_leaderboard, write_leaderboard
from steval.batch.ledger import Ledger
from steval.batch.results import error_of, is_whole
from steval.batch.work import tasks
from steval.checkpoints import store
from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import read_record
from steval.data.cells.scale import sample_indices
from steval.data.columns import Columns
from steval.errors import ConfigError
from steval.evaluator.settings import ScoreSettings
from steval.predictor.job import PredictionJob, run_job
from steval.workflows.predict import predict_as_in
from steval.workflows.score import ScoreRequest, score_predictions
from support.adapters import write_adapter_to
from support.batch_cases import CONTROL, reference_to, write_checkpoint, write_manifest
from support.in_process import InProcessEngine, plan_of, run_in_process

ONE = {"checkpoints": ["models/a.safetensors"], "data": [{"real": "data/packaged.h5ad", "train": "train.h5ad"}]}


@pytest.fixture(scope="module")
def ran(case: Path) -> Path:
    """The case run whole, once; the manifest."""
    path = write_manifest(case, "ran")
    counts = run_in_process(path)
    assert len(counts.finished) == 4
    assert not counts.failed
    return path


def test_chunks_give_what_the_commands_give(ran: Path, case: Path, tmp_path: Path):
    plan = plan_of(ran)
    job = plan.jobs[0]
    real, checkpoint = case / "data" / "packaged.h5ad", case / "models" / "a.safetensors"
    with CellFile.open(real) as cells:
        predict_as_in(checkpoint, cells, Columns(), tmp_path / "preds.h5ad", device="cpu")
    ours, theirs = ad.read_h5ad(plan.layout.predictions(job)), ad.read_h5ad(tmp_path / "preds.h5ad")
    assert ours.obs.equals(theirs.obs)
    np.testing.assert_allclose(ours.X.toarray(), theirs.X.toarray(), rtol=1e-4, atol=1e-6)
    score_predictions(
        ScoreRequest(
            plan.layout.predictions(job),
            checkpoint,
            real,
            case / "train.h5ad",
            tmp_path / "score",
            settings=ScoreSettings(bootstrap=50),
        )
    )
    for name in ("results.csv", "breakdown.csv", "overall.csv", "baselines.csv", "integrity.csv", "de_counts.csv"):
        whole, chunked = tmp_path / "score" / name, plan.layout.directory(job) / "score" / name
        assert whole.read_bytes() == chunked.read_bytes(), name


def test_the_leaderboard_is_ordered_and_has_intervals_and_flags(ran: Path):
    plan = plan_of(ran)
    frame = build_leaderboard(plan)
    assert frame["state"].to_list() == ["scored"] * 4
    assert frame["overall"].to_list() == sorted(frame["overall"], reverse=True)
    assert frame["rank"][0] == 1
    for metric in ("overlap_at_N", "mae", "discrimination_score_l1"):
        values = frame.select(metric, f"{metric}_low", f"{metric}_high")
        assert values.null_count().sum_horizontal()[0] == 0, metric
    assert (frame["overall_low"] <= frame["overall"]).all()
    assert frame["integrity_fail"].sum() > 0 and frame["flags"].str.contains("(fail)", literal=True).any()
    write_leaderboard(plan, frame)
    root = plan.layout.root
    assert pl.read_parquet(root / "leaderboard.parquet").equals(frame)
    assert pl.read_csv(root / "leaderboard.csv").columns == frame.columns
    page = (root / "leaderboard.html").read_text(encoding="utf-8")
    assert 'class="sortable"' in page and "aria-sort" in page
    scored = frame.filter(pl.col("state") == "scored")
    assert scored["simple_model"].is_not_null().all()
    differences = (scored["leaderboard"] - scored["simple_leaderboard"]).to_list()
    assert scored["above_simple"].to_list() == pytest.approx(differences)
    assert all(f"{one['above_simple']:.1f} <small>{one['simple_model']}" in page for one in scored.to_dicts())
    for row in frame.iter_rows(named=True):
        assert f'href="{row["directory"]}/score/report.html"' in page
        assert (root / row["directory"] / "score" / "report.html").is_file()
    assert "http" not in page.replace('lang="en"', "")


def test_finished_work_is_not_repeated(ran: Path):
    plan = plan_of(ran)
    before = {path: path.stat().st_mtime_ns for path in plan.layout.root.rglob("*.csv")}
    engine = InProcessEngine()
    counts = run_in_process(ran, engine)
    assert (counts.reused, counts.finished, engine.done) == (4, [], [])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_lost_ledger_or_result_costs_no_more_than_it_held(case: Path):
    path = write_manifest(
        case, "lost", **ONE, requests=[{"name": "x", "do": "predict"}, {"name": "y", "do": "predict"}]
    )
    run_in_process(path)
    plan = plan_of(path)
    (plan.layout.root / "ledger.sqlite").unlink()
    assert run_in_process(path).reused == 2
    plan.layout.predictions(plan.jobs[0]).unlink()
    engine = InProcessEngine()
    counts = run_in_process(path, engine)
    assert (counts.reused, counts.finished) == (1, [plan.jobs[0].name])
    assert {task.kind for task in engine.done} == {"predict", "assemble"}


def test_a_half_finished_job_goes_on_where_it_was(case: Path):
    path = write_manifest(case, "half", **ONE)

    def stop(task):
        if task.kind == "score":
            raise KeyboardInterrupt
        return

    with pytest.raises(KeyboardInterrupt):
        run_in_process(path, InProcessEngine(stop))
    plan = plan_of(path)
    assert not is_whole(plan.layout, plan.jobs[0])
    engine = InProcessEngine()
    assert run_in_process(path, engine).finished == [plan.jobs[0].name]
    assert [task.kind for task in engine.done] == ["score"]


def test_corrupt_cells_fail_their_jobs_and_no_others(case: Path, tmp_path: Path):
    broken = tmp_path / "case"
    shutil.copytree(case, broken)
    cells = ad.read_h5ad(broken / "data" / "packaged.h5ad")
    is_src = (cells.obs["target_gene"] == "SRC").to_numpy()
    looked_at = np.isin(np.arange(cells.n_obs), sample_indices(cells.n_obs, 200)) | np.isin(
        np.arange(cells.n_obs), sample_indices(cells.n_obs, 256)
    )
    row = np.flatnonzero(is_src & ~looked_at)[0]  # planning looks at a few cells; this one is found when all are read
    cells.X.data[cells.X.indptr[row]] = np.nan
    cells.write_h5ad(broken / "data" / "packaged.h5ad")
    path = write_manifest(broken)
    plan = plan_of(path)
    counts = run_in_process(path, plan=plan)
    assert sorted(counts.failed) == ["a__packaged__all", "b__packaged__all"]
    assert sorted(counts.finished) == ["a__synthetic__all", "b__synthetic__all"]
    failed = next(job for job in plan.jobs if job.name == "a__packaged__all")
    assert "NaN" in (error_of(plan.layout, failed) or "")
    frame = build_leaderboard(plan)
    assert frame["state"].to_list() == ["scored", "scored", "failed", "failed"]
    assert frame["error"][3] is not None
    with Ledger(plan.layout.root / "ledger.sqlite") as ledger:
        assert sorted(state.state for state in ledger.states([job.key for job in plan.jobs]).values()) == [
            "done", "done", "failed", "failed",
        ]  # fmt: skip


def test_a_checkpoint_changed_after_planning_is_not_used(case: Path, tmp_path: Path):
    late = tmp_path / "case"
    shutil.copytree(case, late)
    path = write_manifest(late, **ONE, requests=[{"name": "x", "do": "predict"}])
    plan = plan_of(path)
    shutil.copy(late / "models" / "b.safetensors", late / "models" / "a.safetensors")
    (error,) = run_in_process(path, plan=plan).failed.values()
    assert "a.safetensors has changed since the batch was planned" in error


def test_retries_have_a_limit(case: Path):
    path = write_manifest(case, "retries", **ONE, requests=[{"name": "x", "do": "predict"}], run={"retries": 2})
    seen: list[str] = []

    def fail(task):
        seen.append(task.output.name)
        return Outcome(task, error="OSError: the disk blinked", error_kind="OSError", retriable=True)

    counts = run_in_process(path, InProcessEngine(fail))
    assert seen.count("predict-00000.h5ad") == 3
    assert list(counts.failed.values()) == ["predict: OSError: the disk blinked"]
    tries: dict[str, int] = {}

    def fail_once(task):
        tries[task.output.name] = tries.get(task.output.name, 0) + 1
        return Outcome(task, error="OSError: x", retriable=True) if tries[task.output.name] == 1 else None

    assert len(run_in_process(path, InProcessEngine(fail_once)).finished) == 1
    plan = plan_of(path)
    assert read_json(plan.layout.directory(plan.jobs[0]) / "error.json") is None


def test_a_second_runner_waits_for_the_first_and_takes_nothing_twice(case: Path):
    import threading

    path = write_manifest(case, "two", requests=[{"name": "x", "do": "predict"}])
    engines = [InProcessEngine(lambda task: time.sleep(0.02)), InProcessEngine(lambda task: time.sleep(0.02))]
    results: list = [None, None]

    def go(number: int) -> None:
        results[number] = run_in_process(path, engines[number])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = [task.output for engine in engines for task in engine.done]
    assert len(outputs) == len(set(outputs)) == 16
    assert sum(len(result.finished) for result in results) == 4
    assert all(len(result.finished) + result.reused == 4 for result in results)


def test_some_perturbations_are_scored_alone(case: Path):
    values = {**ONE, "requests": [{"name": "two", "perturbations": ["SRC", "STAT1"]}], "score": {"metrics_only": True}}
    path = write_manifest(case, "some", **values)
    counts = run_in_process(path)
    assert not counts.failed
    plan = plan_of(path)
    results = pl.read_csv(plan.layout.directory(plan.jobs[0]) / "score" / "results.csv")
    assert results["perturbation"].to_list() == ["SRC", "STAT1"]
    assert set(build_leaderboard(plan).columns) >= set(SCHEMA)


def test_predictions_made_before_are_scored(ran: Path, case: Path):
    plan = plan_of(ran)
    made = case / "made"
    made.mkdir()
    shutil.copy(plan.layout.predictions(plan.jobs[0]), made / "a-on-packaged.h5ad")
    requests = [{"name": "later", "do": "score", "predictions": "made/{checkpoint}-on-{data}.h5ad"}]
    path = write_manifest(case, "later", **ONE, requests=requests)
    assert not run_in_process(path).failed
    later = plan_of(path)
    ours, theirs = (one.layout.directory(one.jobs[0]) / "score" / "results.csv" for one in (later, plan))
    assert ours.read_bytes() == theirs.read_bytes()


def test_urls_make_the_same_jobs_and_results_as_paths(ran: Path, case: Path):
    here = f"file://{case}"
    data = [{"real": f"{here}/data/pack*.h5ad", "train": f"{here}/train.h5ad"}]
    path = write_manifest(case, "urls", checkpoints=[f"{here}/models/a.safetensors"], data=data)
    (theirs,) = plan_of(path).jobs
    plan = plan_of(ran)
    ours = plan.jobs[0]
    assert (theirs.name, theirs.key) == (ours.name, ours.key)
    assert not run_in_process(path).failed
    for name in ("results.csv", "baselines.csv"):
        tables = [one.layout.directory(ours) / "score" / name for one in (plan, plan_of(path))]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_recorded_data_of_a_part_is_predicted_and_scored(case: Path, tmp_path: Path):
    source = tmp_path / "cells.h5ad"
    shutil.copy(case / "data" / "packaged.h5ad", source)
    reference = reference_to(source).model_copy(update={"perturbations": ("SRC", "TET1")})
    cells = ad.read_h5ad(source)
    write_checkpoint(tmp_path / "m.safetensors", 0, cells, evaluation=reference)
    path = write_manifest(tmp_path, checkpoints=["m.safetensors"], data=["recorded"])
    assert not run_in_process(path).failed
    plan = plan_of(path)
    preds = ad.read_h5ad(plan.layout.predictions(plan.jobs[0]))
    assert set(preds.obs["target_gene"]) == {"SRC", "TET1", CONTROL}
    frame = build_leaderboard(plan)
    assert frame["overall"].null_count() == 1  # no training cells, no baseline
    assert frame["mae"].null_count() == 0


def test_mean_profiles_and_tables_of_requests(case: Path):
    (case / "wanted.csv").write_text("perturbation,num_cells\nSRC,30\nTET1,12\n", encoding="utf-8")
    requests = [{"name": "means", "do": "predict", "file": "wanted.csv", "output": "mean"}]
    path = write_manifest(case, "means", **ONE, requests=requests)
    assert not run_in_process(path).failed
    plan = plan_of(path)
    preds = ad.read_h5ad(plan.layout.predictions(plan.jobs[0]))
    predicted = preds.obs[preds.obs["predicted"]]
    assert dict(zip(predicted["target_gene"], predicted["num_cells"], strict=True)) == {"SRC": 30, "TET1": 12}


def test_an_adapter_gives_what_predict_gives_with_it(case: Path, tmp_path: Path):
    base = case / "models" / "a.safetensors"
    for seed, name in enumerate(("left", "right")):
        write_adapter_to(base, case / f"{name}.adapter.safetensors", seed=seed)
    entries = [
        {"path": "models/a.safetensors", "adapter": "left.adapter.safetensors"},
        {"path": "models/a.safetensors", "adapter": "right.adapter.safetensors", "name": "other"},
        "models/a.safetensors",
    ]
    data = [{"real": "data/packaged.h5ad"}]
    requests = [{"do": "both"}, {"name": "means", "do": "predict", "output": "mean"}]
    path = write_manifest(case, "adapted", checkpoints=entries, data=data, requests=requests)
    plan = plan_of(path)
    assert [job.checkpoint_name for job in plan.jobs[::2]] == ["left", "other", "a"]
    assert not run_in_process(path).failed
    for job in plan.jobs:
        given = None if job.adapter is None else Path(job.adapter.place)
        theirs = predict_here(base, given, case / "data" / "packaged.h5ad", tmp_path / f"{job.name}.h5ad", job.output)
        ours = ad.read_h5ad(plan.layout.predictions(job))
        digests = [read_record(cells.uns)["details"]["checkpoint_digest"] for cells in (ours, theirs)]
        assert digests == [job.model_digest] * 2
        np.testing.assert_allclose(ours.X.toarray(), theirs.X.toarray(), rtol=1e-4, atol=1e-6)
    scored = read_json(plan.layout.directory(plan.jobs[0]) / "score" / "score.json")
    assert scored is not None
    assert scored["record"]["model"]["adapter"] == str(case / "left.adapter.safetensors")


def predict_here(base: Path, adapter: Path | None, real: Path, out: Path, output: str) -> ad.AnnData:
    run_job(PredictionJob(checkpoint=base, adapter=adapter, request=real, out=out, output=output, device="cpu"))
    return ad.read_h5ad(out)


def test_adapters_are_checked_before_anything_runs_and_are_part_of_what_a_job_is(case: Path, tmp_path: Path):
    write_adapter_to(case / "models" / "a.safetensors", case / "of-a.adapter.safetensors", seed=3)
    entry = {"path": "models/b.safetensors", "adapter": "of-a.adapter.safetensors"}
    with pytest.raises(ConfigError, match=r"checkpoint of-a: .*of-a\.adapter\.safetensors is not for .*b\.safetensors"):
        plan_of(write_manifest(case, "wrong", **{**ONE, "checkpoints": [entry]}))
    entry = {"path": "models/a.safetensors", "adapter": "none.adapter.safetensors"}
    with pytest.raises(ConfigError, match="no such checkpoint"):
        plan_of(write_manifest(case, "missing", **{**ONE, "checkpoints": [entry]}))
    write_adapter_to(case / "models" / "a.safetensors", case / "of-b.adapter.safetensors", seed=4)
    for pattern, number in (("of-?.adapter.safetensors", "2 files"), ("no-?.adapter.safetensors", "0 files")):
        entry = {"path": "models/a.safetensors", "adapter": pattern}
        with pytest.raises(ConfigError, match=rf"the adapter .* is {number}; name one"):
            plan_of(write_manifest(case, "several", **{**ONE, "checkpoints": [entry]}))
    entry = {"path": "models/a.safetensors", "adapter": "of-a.adapter.safetensors", "name": "a"}
    with_it = plan_of(write_manifest(case, "with", **{**ONE, "checkpoints": [entry]})).jobs[0]
    without = plan_of(write_manifest(case, "without", **ONE)).jobs[0]
    assert (with_it.name, with_it.key != without.key, with_it.real_key) == (without.name, True, without.real_key)


def test_assembly_loads_no_network_and_evicts_none(case: Path, monkeypatch: pytest.MonkeyPatch):
    tasks._loaded.cache_clear()
    load = store.load_checkpoint
    loads: list[str] = []
    kinds: list[str] = []

    def before(task: Task) -> None:
        kinds.append(task.kind)

    def counting(path: Path) -> store.Checkpoint:
        loads.append(kinds[-1])
        return load(path)

    monkeypatch.setattr(store, "load_checkpoint", counting)
    requests = [{"name": "first", "do": "predict", "cells": 20}, {"name": "second", "do": "predict", "cells": 21}]
    path = write_manifest(case, "assembled", **ONE, requests=requests)
    assert not run_in_process(path, InProcessEngine(before)).failed
    assert kinds.count("assemble") == 2
    assert loads == ["predict"]


def test_a_request_of_a_batch_says_how_predictions_become_cells(case: Path):
    requests = [{"name": kind, "do": "predict", "cells": 20, "decoding": kind} for kind in ("network", "carried")]
    path = write_manifest(case, "decoded", **ONE, requests=requests)
    assert not run_in_process(path).failed
    plan = plan_of(path)
    for job in plan.jobs:
        with CellFile.open(plan.layout.predictions(job)) as cells:
            assert cells.record["details"]["predictor"]["decoding"]["kind"] == job.request_name
            assert cells.obs["predicted"].sum() == 5 * 20
    assert plan.jobs[0].key != plan.jobs[1].key
