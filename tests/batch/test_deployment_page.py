"""Every `sh` block of docs/deployment.md runs, in order, on the manifest that the page shows."""

import json
import shutil

import anndata as ad
import pytest
import yaml
from typer.testing import CliRunner

from steval.cli.app import app
from support.adapters import write_adapter_to
from support.batch_cases import real_cells, reference_to, write_checkpoint
from support.documented import ROOT, blocks, commands_to_run
from support.in_process import InProcessEngine

PAGE = ROOT / "docs" / "deployment.md"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """What the manifest names: a run and a published checkpoint, cells to score against, predictions made before."""
    for name in ("runs/first/checkpoints", "models", "data", "preds/best-val", "preds/published", "preds/thp1"):
        (tmp_path / name).mkdir(parents=True)
    real = real_cells()
    cells = tmp_path / "data" / "screen.h5ad"
    real[::4].copy().write_h5ad(cells)
    real[1::4].copy().write_h5ad(tmp_path / "train.h5ad")
    evaluation = {"evaluation": reference_to(cells), "training": reference_to(tmp_path / "train.h5ad")}
    write_checkpoint(tmp_path / "runs/first/checkpoints/best-val.safetensors", 0, real, **evaluation)
    write_checkpoint(tmp_path / "models/st.safetensors", 1, real, **evaluation)
    write_adapter_to(tmp_path / "models/st.safetensors", tmp_path / "thp1.adapter.safetensors", seed=2)
    for name in ("best-val", "published", "thp1"):
        for data in ("screen", "recorded"):
            shutil.copy(cells, tmp_path / "preds" / name / f"{data}.h5ad")
    manifest = yaml.safe_load(blocks(PAGE, "yaml")[0])
    manifest["score"] |= {"profile": "minimal", "bootstrap": 20}  # quick; the rest as the page has it
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "steval.batch.run.make_engine", lambda _: InProcessEngine()
    )  # worker processes: test_engines.py
    return tmp_path


def test_every_command_of_the_page_runs(directory):
    lines = commands_to_run(PAGE)
    assert len(lines) >= 6
    for program, *arguments in lines:
        assert program == "steval"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    done = [json.loads(path.read_text()) for path in directory.glob("night.batch/jobs/*/job.json")]
    assert len(done) == 3 * 2 * 3
    predicted = ad.read_h5ad(next(directory.glob("night.batch/jobs/*few*/preds.h5ad")))
    assert {"STAT1", "SRC"} <= set(predicted.obs["target_gene"])
    for name in ("leaderboard.html", "leaderboard.csv", "leaderboard.parquet", "ledger.sqlite", "manifest.yaml"):
        assert (directory / "night.batch" / name).is_file(), name
