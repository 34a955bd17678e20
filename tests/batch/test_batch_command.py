"""`steval batch`: plan, exit codes, shards, and data on another volume."""

import json
import shutil
import sqlite3
from pathlib import Path

import anndata as ad
import polars as pl
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from support.batch_cases import reference_to, write_checkpoint, write_manifest

PREDICT = {"requests": [{"name": "x", "do": "predict", "cells": 5}]}


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["batch", *arguments])


def test_the_plan_is_shown_and_nothing_runs(case: Path):
    path = write_manifest(case, "shown")
    result = invoke(str(path), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "a__packaged__all" in result.stdout and "4 jobs, 38 tasks on 2 workers" in result.stdout
    assert "MiB" in result.stdout and " s (a guess" in result.stdout  # for a person; --json has numbers
    plan = json.loads(invoke(str(path), "--dry-run", "--json", "--shard", "2/2").stdout)
    assert [job["job"] for job in plan["plan"]] == ["a__synthetic__all", "b__synthetic__all"]
    assert not (case / "shown.batch").exists()


def test_a_bad_manifest_is_exit_2_with_every_problem(case: Path):
    path = write_manifest(case, "bad", data=["none.h5ad", "nor/*.h5ad"])
    result = invoke(str(path))
    assert result.exit_code == 2
    assert "none.h5ad" in result.stderr and "nothing matches nor/*.h5ad" in result.stderr
    assert "Traceback" not in result.stderr
    assert invoke(str(case / "absent.yaml")).exit_code == 2
    assert invoke(str(path), "--set", "run.engine=slurm").exit_code == 2
    assert invoke(str(path), "--shard", "9").exit_code == 2


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_ledger_of_an_older_version_is_exit_2(case: Path, tmp_path: Path, engine: str):
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    database.executescript("CREATE TABLE jobs (key TEXT); PRAGMA user_version = 1; PRAGMA application_id = 1398031702;")
    database.close()
    result = invoke(str(write_manifest(case, "old")), "--out", str(tmp_path), "--engine", engine)
    assert result.exit_code == 2
    assert "was written by an older steval (ledger format 1; this one has 2)" in result.stderr
    assert "move the file away" in result.stderr


def test_shards_and_their_collection(case: Path):
    path = write_manifest(case, "shards", **PREDICT, checkpoints=["models/a.safetensors"])
    for shard in ("1/2", "2/2"):
        result = invoke(str(path), "--shard", shard, "--workers", "1")
        assert result.exit_code == 0, result.output
        if shard == "1/2":
            early = invoke(str(path), "--collect")
            assert early.exit_code == 5
            assert "missing" in early.stderr
    root = case / "shards.batch"
    assert sorted(path.name for path in root.glob("ledger-*.sqlite")) == [
        "ledger-1-of-2.sqlite",
        "ledger-2-of-2.sqlite",
    ]
    collected = invoke(str(path), "--collect")
    assert collected.exit_code == 0, collected.output
    assert pl.read_csv(root / "leaderboard.csv")["state"].to_list() == ["predicted", "predicted"]
    assert not (root / "work").exists()


@pytest.fixture
def shipped(case: Path, tmp_path: Path) -> Path:
    """A checkpoint whose evaluation data was elsewhere when it was made, and predictions of it."""
    source = tmp_path / "elsewhere" / "cells.h5ad"
    source.parent.mkdir()
    shutil.copy(case / "data" / "packaged.h5ad", source)
    write_checkpoint(tmp_path / "m.safetensors", 0, ad.read_h5ad(source), evaluation=reference_to(source))
    (tmp_path / "volume" / "deep").mkdir(parents=True)
    source.rename(tmp_path / "volume" / "deep" / "cells.h5ad")
    return tmp_path


def test_data_on_another_volume_is_found_and_a_changed_file_is_refused(shipped: Path):
    model, preds, volume = (str(shipped / name) for name in ("m.safetensors", "preds.h5ad", "volume"))
    arguments = ["score", model, preds, "--predict", "--metrics-only", "--metrics", "mae"]
    lost = CliRunner().invoke(app, arguments)
    assert lost.exit_code == 4
    assert "--data-dir" in lost.stderr
    found = CliRunner().invoke(app, [*arguments, "--data-dir", volume, "--device", "cpu"])
    assert found.exit_code == 0, found.output
    manifest = str(write_manifest(shipped, checkpoints=["m.safetensors"], data=["recorded"]))
    assert invoke(manifest, "--dry-run").exit_code == 2
    assert invoke(manifest, "--dry-run", "--data-dir", volume).exit_code == 0
    cells = ad.read_h5ad(shipped / "volume" / "deep" / "cells.h5ad")
    cells.X.data[0] += 1
    cells.write_h5ad(shipped / "volume" / "deep" / "cells.h5ad")
    changed = CliRunner().invoke(app, [*arguments, "--data-dir", volume])
    assert changed.exit_code == 4
    assert "its content has changed" in changed.stderr
    refused = invoke(manifest, "--dry-run", "--data-dir", volume)
    assert refused.exit_code == 2
    assert "its content has changed" in refused.stderr


@pytest.mark.parametrize("more", [[], ["--collect"]])
def test_a_batch_that_cannot_run_leaves_no_directory(tmp_path: Path, more: list[str]):
    manifest = tmp_path / "night.yaml"
    manifest.write_text("checkpoints: [absent.safetensors]\ndata: [absent.h5ad]\n")
    arguments = ["batch", str(manifest), "-o", str(tmp_path / "night"), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "nothing was started" in result.stderr
    assert not (tmp_path / "night").exists()
