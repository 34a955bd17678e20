"""`finetune --seeds`: a run for each seed, stopped and continued as one, whose checkpoints predict together."""

import json
import os
import signal
from pathlib import Path

import anndata as ad
import pytest
from typer.testing import CliRunner

from steval.checkpoints.location import locate_checkpoint
from steval.checkpoints.store import load_checkpoint
from steval.cli.app import app
from steval.data.cells.record import KEY, read_record, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.synthetic import generate
from steval.errors import CheckpointError, ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.notices import Notice
from steval.workflows.seeds import _start, finetune_seeds, resume_seeds
from support.tiny_runs import tiny_config

SEEDS = (7, 8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    path = tmp_path_factory.mktemp("seeds") / "cells.h5ad"
    cells = generate(
        num_genes=40, num_perturbations=6, cells_per_perturbation=16, num_controls=40, cell_types=("X", "Y"),
        affected_genes=(3, 10), counts_per_cell=1500.0, seed=1,
    ).cells  # fmt: skip
    cells.X = lognorm(cells.X, 10_000.0)
    cells.uns[KEY] = steval_record(made_by="test", scale="lognorm", target_sum=10_000.0, columns=Columns())
    cells.write_h5ad(path)
    return tiny_config(path, "seed=7")


@pytest.fixture(scope="module")
def whole(config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "runs"
    done = finetune_seeds(config, path, 2, device="cpu")
    assert done.finished
    assert done.run_dirs == tuple(path / f"seed-{seed}" for seed in SEEDS)
    return path


def tensors(path: Path, seed: int) -> dict[str, str]:
    """Digests of a run's best weights."""
    return dict(load_checkpoint(path / f"seed-{seed}" / "checkpoints" / "best-val.safetensors").manifest.tensors)


def test_each_seed_has_a_calibrated_run_of_its_own(whole: Path, config: FinetuneConfig) -> None:
    found = [FinetuneConfig.load(whole / f"seed-{seed}" / "config.yaml") for seed in SEEDS]
    assert [one.seed for one in found] == list(SEEDS)
    assert found[1].model_copy(update={"seed": 7}) == found[0]
    assert (found[0].data, found[0].phases) == (config.with_absolute_paths().data, config.phases)
    assert tensors(whole, 7) != tensors(whole, 8)
    for seed in SEEDS:
        assert "calibration" in json.loads((whole / f"seed-{seed}" / "run.json").read_text())


def test_a_stop_ends_all_and_resume_goes_on_to_the_same_weights(
    whole: Path, config: FinetuneConfig, tmp_path: Path
) -> None:
    def stop(notice: Notice) -> None:
        if notice.title.startswith("Phase 2"):
            os.kill(os.getpid(), signal.SIGINT)

    stopped = finetune_seeds(config, tmp_path / "runs", 2, device="cpu", report=stop)
    assert not stopped.finished
    assert [result.finished for result in stopped.results] == [False]
    assert not (tmp_path / "runs" / "seed-8").exists()
    done = resume_seeds(tmp_path / "runs", device="cpu")
    assert done.finished
    for seed in SEEDS:
        assert tensors(tmp_path / "runs", seed) == tensors(whole, seed)
    assert resume_seeds(tmp_path / "runs", device="cpu").finished


def test_only_its_own_is_replaced(whole: Path, config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already holds runs of several seeds"):
        finetune_seeds(config, whole, 2, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds no runs of several seeds \(it holds notes.txt\)"):
            finetune_seeds(config, tmp_path, 2, device="cpu", overwrite=overwrite)
    several = config.model_copy(update={"compute": config.compute.model_copy(update={"devices": 2})})
    with pytest.raises(ConfigError, match=r"compute.devices=1"):
        finetune_seeds(several, tmp_path / "new", 2, device="cpu")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "seeds.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        resume_seeds(tmp_path)


def test_what_the_command_says_at_the_end_predicts(whole: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["finetune", "--resume", str(whole), "--device", "cpu"])
    assert run.exit_code == 0, run.output
    said = next(line for line in run.stdout.splitlines() if "predict with all of them" in line)
    command = said.partition("steval ")[2].split()
    assert command[:3] == ["predict", str(whole / "seed-7"), str(whole / "seed-8")]
    out = tmp_path / "preds.h5ad"
    predicted = CliRunner().invoke(app, [*command[:-1], str(out), "--cell-type", "X", "-n", "4"])
    assert predicted.exit_code == 0, predicted.output
    members = read_record(ad.read_h5ad(out).uns)["details"]["predictor"]["ensemble"]
    assert [Path(one["checkpoint"]).parts[-3] for one in members] == ["seed-7", "seed-8"]
    with pytest.raises(
        CheckpointError, match=r"give one of them, or to steval predict all together: .*seed-7 .*seed-8"
    ):
        locate_checkpoint(whole)
    told = CliRunner().invoke(app, ["finetune", "--resume", str(whole), "--device", "cpu", "--json"])
    assert [run["finished"] for run in json.loads(told.stdout)["runs"]] == [True, True]


def test_bad_usage_is_said(whole: Path) -> None:
    for arguments, message in (
        (["--resume", str(whole), "--seeds", "3"], "leave --seeds out"),
        (["--resume", str(whole), "--set", "seed=3"], "leave CONFIG and --set out"),
        (["quick-cpu", "--seeds", "1"], "--seeds"),
    ):
        found = CliRunner().invoke(app, ["finetune", *arguments])
        assert found.exit_code == 2, found.output
        assert message in " ".join(found.output.replace("│", " ").split())


def test_seeds_start_from_one_commit_of_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A branch may move between two of the runs."""
    cached = tmp_path / "models--lab--st" / "snapshots" / ("0" * 40) / "m.safetensors"
    monkeypatch.setattr("steval.workflows.seeds.local", lambda reference: cached)
    assert _start(Path("hf://lab/st@main/m.safetensors")) == f"hf://lab/st@{'0' * 40}/m.safetensors"
    assert _start(Path("m.safetensors")) == str(Path.cwd() / "m.safetensors")
