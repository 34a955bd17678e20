"""Every `sh` block of docs/deployment.md runs, in order: the plan of the page's manifest, the work of its first checkpoint."""

import json
import shutil

import anndata as ad
import pytest
import yaml
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.effects.decoding import DecodingSettings
from support.adapters import write_adapter_to
from support.batch_cases import real_cells, reference_to, write_checkpoint
from support.documented import ROOT, blocks, commands_to_run
from support.in_process import InProcessEngine

PAGE = ROOT / "docs" / "deployment.md"
NAMES = ("best-val", "published", "thp1", "both")
"""Of the manifest's checkpoints."""
CARRIED = DecodingSettings(kind="carried", effect_cells=16)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """What the manifest names: runs, a published checkpoint, cells to score against, predictions made before."""
    seeds = [f"runs/s/seed-{seed}/checkpoints" for seed in (1, 2)]
    for name in ("runs/first/checkpoints", *seeds, "models", "data", *(f"preds/{name}" for name in NAMES)):
        (tmp_path / name).mkdir(parents=True)
    real = real_cells()
    cells = tmp_path / "data" / "screen.h5ad"
    real[::4].copy().write_h5ad(cells)
    real[1::4].copy().write_h5ad(tmp_path / "train.h5ad")
    evaluation = {"evaluation": reference_to(cells), "training": reference_to(tmp_path / "train.h5ad")}
    write_checkpoint(tmp_path / "runs/first/checkpoints/best-val.safetensors", 0, real, **evaluation)
    write_checkpoint(tmp_path / "models/st.safetensors", 1, real, **evaluation)
    for seed in (1, 2):
        write_checkpoint(
            tmp_path / f"runs/s/seed-{seed}/checkpoints/best-val.safetensors",
            2 + seed,
            real,
            decoding=CARRIED,
            **evaluation,
        )
    write_adapter_to(tmp_path / "models/st.safetensors", tmp_path / "thp1.adapter.safetensors", seed=2)
    for name in NAMES:
        for data in ("screen", "recorded"):
            shutil.copy(cells, tmp_path / "preds" / name / f"{data}.h5ad")
    manifest = yaml.safe_load(blocks(PAGE, "yaml")[0])
    manifest["score"] |= {
        "profile": "minimal",
        "bootstrap": 20,
        "metrics_only": True,
    }  # quick; the rest as the page has it
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "steval.batch.run.make_engine", lambda _: InProcessEngine()
    )  # worker processes: test_engines.py
    return tmp_path


def test_every_command_of_the_page_runs(directory):
    lines = commands_to_run(PAGE)
    manifest = yaml.safe_load((directory / "night.yaml").read_text())
    assert len(lines) >= 6
    for program, *arguments in lines:
        assert program == "steval"
        if arguments[0] == "batch" and "--dry-run" not in arguments:
            (directory / "night.yaml").write_text(
                yaml.safe_dump(manifest | {"checkpoints": manifest["checkpoints"][:1]})
            )
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        assert "--dry-run" not in arguments or f"{len(NAMES) * 2 * 3} jobs" in result.output
    done = [json.loads(path.read_text()) for path in directory.glob("night.batch/jobs/*/job.json")]
    assert len(done) == 2 * 3
    predicted = ad.read_h5ad(next(directory.glob("night.batch/jobs/*few*/preds.h5ad")))
    assert {"STAT1", "SRC"} <= set(predicted.obs["target_gene"])
    for name in ("leaderboard.html", "leaderboard.csv", "leaderboard.parquet", "ledger.sqlite", "manifest.yaml"):
        assert (directory / "night.batch" / name).is_file(), name
