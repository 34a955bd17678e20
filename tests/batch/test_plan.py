"""Planning: identity of jobs, all problems at once, nothing written."""

import shutil
from pathlib import Path

import anndata as ad
import pytest

from steval.batch.jobs import Job
from steval.batch.leaderboard import remove_work
from steval.batch.run import outline, parse_shard
from steval.batch.settings import BatchManifest
from steval.errors import ConfigError
from support.batch_cases import NAMES, reference_to, write_checkpoint, write_manifest
from support.in_process import plan_of, run_in_process


def keys(path: Path) -> dict[str, str]:
    return {job.name: job.key for job in plan_of(path).jobs}


def test_a_job_for_each_checkpoint_data_set_and_request(case: Path):
    requests = [{"name": "all"}, {"name": "one", "perturbations": ["SRC"], "cells": 7, "do": "predict"}]
    plan = plan_of(write_manifest(case, "plan-all", requests=requests))
    names = [
        f"{checkpoint}__{data}__{one}"
        for checkpoint in "ab"
        for data in ("packaged", "synthetic")
        for one in ("all", "one")
    ]
    assert [job.name for job in plan.jobs] == names
    whole, one = plan.jobs[0], plan.jobs[1]
    assert whole.perturbations == tuple(NAMES)
    assert (whole.subset, one.subset) == (False, True)
    assert [(item.perturbation, item.num_cells, item.cell_type) for item in one.items] == [("SRC", 7, "H1")]
    assert [job.wants_de for job in (whole, one)] == [True, False]


def test_identity_is_content_and_parameters_not_place(case: Path, tmp_path: Path):
    here = keys(write_manifest(case, "plan-here"))
    moved = tmp_path / "moved"
    shutil.copytree(case, moved)
    assert keys(write_manifest(moved, "plan-moved")) == here
    assert keys(write_manifest(case, "plan-workers", run={"workers": 1, "engine": "ray"})) == here
    for change in ({"chunk": 3}, {"score": {"bootstrap": 51}}, {"requests": [{"name": "all", "seed": 1}]}):
        other = keys(write_manifest(case, "plan-change", **change))
        assert other.keys() == here.keys()
        assert not set(other.values()) & set(here.values()), change


def test_the_real_side_is_shared_by_checkpoints(case: Path):
    jobs = plan_of(write_manifest(case, "plan-shared")).jobs
    by_data: dict[str, set[str]] = {}
    for job in jobs:
        by_data.setdefault(job.data_name, set()).add(job.real_key)
    assert [len(found) for found in by_data.values()] == [1, 1]
    assert len(set.union(*by_data.values())) == 2


def test_every_problem_is_listed_and_nothing_is_written(case: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(case, broken)
    (broken / "data" / "packaged.h5ad").write_bytes(b"\x89HDF nothing")
    (broken / "models" / "b.safetensors").write_bytes(b"\x00" * 100)
    cells = ad.read_h5ad(case / "data" / "synthetic.h5ad")
    cells.obs["target_gene"] = cells.obs["target_gene"].cat.rename_categories({"SRC": "SRCC"})
    cells.write_h5ad(broken / "data" / "misspelt.h5ad")
    path = write_manifest(
        broken, data=[{"real": "data/*.h5ad"}, "nowhere/*.h5ad", "absent.h5ad"], score={"profile": "vvc"}
    )
    with pytest.raises(ConfigError) as caught:
        plan_of(path)
    text = str(caught.value)
    for part in (
        "nothing was started", "data packaged: ", "checkpoint b: ", "'SRCC': nearest known SRC", "nothing matches nowhere/*.h5ad",
        "no such file: ", "there is no profile 'vvc'; profiles are", "nearest: vcc",
    ):  # fmt: skip
        assert part in text, part
    assert not (broken / "night.batch").exists()


def test_data_that_does_not_fit_the_checkpoint_is_found_early(case: Path, tmp_path: Path):
    cells = ad.read_h5ad(case / "data" / "packaged.h5ad")
    fewer = cells[:, :100].copy()
    fewer.write_h5ad(tmp_path / "fewer.h5ad")
    counts = cells.copy()
    counts.X = (counts.X > 0).astype("float32") * 3
    del counts.uns["steval"]
    counts.write_h5ad(tmp_path / "counts.h5ad")
    path = write_manifest(case, "plan-misfit", data=[str(tmp_path / "fewer.h5ad"), str(tmp_path / "counts.h5ad")])
    with pytest.raises(ConfigError) as caught:
        plan_of(path)
    assert "lacks 20 of the 120 genes" in str(caught.value)
    assert "only the same genes are scored" in str(caught.value)
    assert "counts" in str(caught.value)


def test_recorded_data_is_found_in_data_dirs(case: Path, tmp_path: Path):
    source = tmp_path / "original.h5ad"
    shutil.copy(case / "data" / "packaged.h5ad", source)
    reference = reference_to(source)
    write_checkpoint(tmp_path / "m.safetensors", 0, ad.read_h5ad(source), evaluation=reference)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    source.rename(mounted / "original.h5ad")
    values = {"checkpoints": ["m.safetensors"], "data": ["recorded"]}
    with pytest.raises(ConfigError, match="--data-dir or STEVAL_DATA_DIR"):
        plan_of(write_manifest(tmp_path, "lost", **values))
    (job,) = plan_of(write_manifest(tmp_path, "found", **values, data_dirs=["mounted"])).jobs
    assert job.real is None
    assert job.perturbations == tuple(NAMES)
    with pytest.raises(ConfigError, match="no such directory"):
        plan_of(write_manifest(tmp_path, "bad-dir", **values, data_dirs=["nowhere"]))


def test_equal_names_are_refused(case: Path, tmp_path: Path):
    entries = [{"path": f"models/{name}.safetensors", "name": "same"} for name in "ab"]
    with pytest.raises(ConfigError, match="more than one is named same"):
        plan_of(write_manifest(case, "plan-same", checkpoints=entries))


def test_the_same_file_named_twice_is_taken_once(case: Path):
    path = write_manifest(
        case, "plan-twice", checkpoints=["models/a.safetensors", "./models/*.safetensors", "data/../models/a.safetensors"],
        data=["data/packaged.h5ad", "data/*.h5ad", "models/../data/packaged.h5ad"],
    )  # fmt: skip
    names = [f"{checkpoint}__{data}__all" for checkpoint in "ab" for data in ("packaged", "synthetic")]
    assert [job.name for job in plan_of(path).jobs] == names
    twice = [{"real": "data/packaged.h5ad"}, {"real": "data/packaged.h5ad", "train": "train.h5ad"}]
    with pytest.raises(ConfigError, match="more than once: packaged"):
        plan_of(write_manifest(case, "plan-two-ways", data=twice))


def test_training_cells_and_earlier_predictions_are_looked_at_too(case: Path, tmp_path: Path):
    own = tmp_path / "case"
    shutil.copytree(case, own)
    cells = ad.read_h5ad(own / "data" / "packaged.h5ad")
    cells[:, :119].copy().write_h5ad(own / "lacks-a.h5ad")
    cells[cells.obs["target_gene"] != "SRC"].copy().write_h5ad(own / "lacks-b.h5ad")
    (own / "cut.h5ad").write_bytes((own / "train.h5ad").read_bytes()[:50_000])
    cells[cells.obs["target_gene"] != "non-targeting"].copy().write_h5ad(own / "treated.h5ad")
    data = [
        {"real": "data/packaged.h5ad", "train": "cut.h5ad", "name": "one"},
        {"real": "data/packaged.h5ad", "train": "treated.h5ad", "name": "two"},
        {"real": "data/packaged.h5ad", "train": "lacks-a.h5ad", "name": "three"},
    ]
    requests = [{"name": "x", "do": "score", "predictions": "lacks-{checkpoint}.h5ad"}]
    with pytest.raises(ConfigError) as caught:
        plan_of(write_manifest(own, data=data, requests=requests))
    found = {problem.split(": ")[0]: problem for problem in caught.value.problems}
    assert "cut.h5ad is not a readable h5ad file" in found["data one"]
    assert "no control cells ('non-targeting')" in found["data two"]
    assert f"lacks 1 of the 120 genes that are needed: {cells.var_names[119]}" in found["data three"]
    assert f"predictions lacks 1 of the 120 genes that are needed: {cells.var_names[119]}" in found["a × one × x"]
    assert "predictions: 1 perturbation of the data missing: SRC" in found["b × two × x"]
    assert len(found) == 9
    assert not any("\n" in problem for problem in caught.value.problems)


def test_a_dry_run_has_sizes_and_writes_nothing(case: Path):
    path = write_manifest(case, "plan-dry")
    found = outline(path, BatchManifest.load(path))
    assert [one.num_tasks for one in found.jobs] == [
        11,
        11,
        8,
        8,
    ]  # the real side's three chunks are made once a data set
    assert found.seconds > 0
    assert not (case / "plan-dry.batch").exists()


def test_shards_divide_the_jobs():
    assert parse_shard("2/8") == (2, 8)
    assert parse_shard(None) is None
    for wrong in ("0/3", "4/3", "x", "2"):
        with pytest.raises(ConfigError, match="--shard takes K/N"):
            parse_shard(wrong)


def test_a_job_passes_through_json(case: Path):
    for job in plan_of(write_manifest(case, "plan-json")).jobs:
        assert Job.parse(job.as_dict()) == job


def test_nothing_that_a_batch_reads_lies_where_it_writes(case: Path, tmp_path: Path):
    kept = tmp_path / "work" / "mine"
    kept.mkdir(parents=True)
    shutil.copy(case / "models" / "a.safetensors", kept)
    values = {"data": [str(case / "data" / "packaged.h5ad")], "requests": [{"name": "x", "do": "predict", "cells": 3}]}
    manifest = write_manifest(tmp_path, checkpoints=["work/mine/a.safetensors"], out=".", **values)
    with pytest.raises(
        ConfigError, match=r"work/mine/a\.safetensors lies in .*work, where the batch makes and removes"
    ):
        plan_of(manifest)
    manifest = write_manifest(tmp_path, checkpoints=[str(case / "models" / "a.safetensors")], out=".", **values)
    (tmp_path / "manifest.yaml").write_text(manifest.read_text())
    with pytest.raises(ConfigError, match="would be replaced by the batch's own copy"):
        plan_of(tmp_path / "manifest.yaml")
    plan = plan_of(manifest)
    assert not run_in_process(manifest, plan=plan).failed
    plan.layout.parts(plan.jobs[0]).mkdir()
    remove_work(plan)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["mine"]
