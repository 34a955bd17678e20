"""What a run does and leaves behind."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch

from steval.checkpoints.manifest import WarmupRecord
from steval.checkpoints.store import Checkpoint, load_checkpoint
from steval.errors import ConfigError, DataError
from steval.settings import apply_overrides, read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.window import DivergenceError
from steval.trainer.progress.notices import Notice
from steval.trainer.progress.state import Progress, load_state
from steval.trainer.recipes import config_path
from support.tiny_runs import PHASES, last_weights, rows, run, tiny_config


@pytest.fixture(scope="module")
def notices() -> list[Notice]:
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, screen_path: Path, notices: list[Notice]) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config(screen_path, "checks.keep_every=5")
    result = run(config, run_dir, report=notices.append)
    assert result.finished
    assert (result.step, result.best) == (16, run_dir / "checkpoints" / "best-val.safetensors")
    return run_dir


def test_the_run_directory_has_the_files_of_the_design(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"config.yaml", "metrics.csv", "run.json", "checkpoints"}
    names = {path.name for path in (finished / "checkpoints").iterdir()}
    assert names == {"best-val.safetensors", "last.ckpt", "step-00000005.safetensors", "step-00000012.safetensors"}
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["writing_seconds"] > 0 and 0 <= record["waiting_seconds"] < record["training_seconds"]
    assert FinetuneConfig.load(finished / "config.yaml").digest() == record["config_digest"]
    assert set(record["phases"]) == {"frozen", "all"}


def test_the_best_checkpoint_describes_itself(finished: Path, screen_path: Path) -> None:
    checkpoint = load_checkpoint(finished / "checkpoints" / "best-val.safetensors")
    manifest = checkpoint.manifest
    values = {row["step"]: float(row["val/gene"]) for row in rows(finished) if row["val/gene"]}
    best_step = min(values, key=values.__getitem__)
    assert manifest.training.step == int(best_step)
    assert manifest.training.validation["val/gene"] == pytest.approx(values[best_step], rel=1e-7)
    assert [phase.name for phase in manifest.training.phases] == ["frozen", "all"]
    assert (manifest.scale, manifest.target_sum) == ("lognorm", 1000.0)
    assert len(manifest.perturbations) == 5
    assert manifest.num_controls == {"left": 30, "right": 30}
    assert manifest.evaluation.part == "test"
    assert manifest.training_data.part == "train"
    assert manifest.training_data.files[0].path == str(screen_path)
    prediction = checkpoint.network()(torch.zeros(1, 3, 48), checkpoint.features[:1])
    assert prediction.output_BSG.shape == (1, 3, 48)


def test_frozen_parameters_do_not_change_by_a_bit(screen_path: Path, tmp_path: Path) -> None:
    config = tiny_config(screen_path, phases=PHASES[:1])
    run(config, tmp_path / "run")
    run(tiny_config(screen_path, "phases.0.steps=1", phases=PHASES[:1]), tmp_path / "one")
    after, before = last_weights(tmp_path / "run"), last_weights(tmp_path / "one")
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith("transformer_backbone."), name


def test_a_phase_starts_from_the_best_weights_with_a_fresh_optimiser(finished: Path) -> None:
    by_place = {(row["phase"], row["phase_step"]): row for row in rows(finished)}
    best_of_first = min(
        float(row["val/gene"]) for row in rows(finished) if row["phase"] == "frozen" and row["val/gene"]
    )
    assert float(by_place["all", "0"]["val/gene"]) == pytest.approx(best_of_first)
    assert float(by_place["all", "2"]["lr/encoders"]) > float(by_place["frozen", "7"]["lr/encoders"])
    state = load_state(finished / "checkpoints" / "last.ckpt")
    assert {float(value["step"]) for value in state["optimiser"]["state"].values()} == {9.0}


def test_rows_name_losses_rates_and_gradient_norms(finished: Path) -> None:
    table = rows(finished)
    assert [row["step"] for row in table] == ["0", "2", "4", "6", "7", "7", "9", "11", "13", "15", "16"]
    row = table[-1]
    assert float(row["lr/block_00"]) == pytest.approx(0.5 * float(row["lr/block_01"]))
    assert float(row["train/total"]) == float(row["train/gene"])
    assert float(row["grad_norm/total"]) > 0
    assert not table[1]["lr/block_00"]


def test_each_phase_is_announced_with_counts_and_rates(finished: Path, notices: list[Notice]) -> None:
    preflight, layers, first, second = notices
    assert finished.exists()
    assert dict(preflight.rows)["input space"] == "expression, 48 columns"
    assert [row[0] for row in layers.rows] == ["perturbation encoder, first layer", "project_out, last layer"]
    assert "frozen: top" in first.title
    assert {row[0] for row in first.rows} == {"encoders", "outputs"}
    assert {row[0]: row[2] for row in second.rows}["block_00"] == "0.00025"
    network = load_checkpoint(finished / "checkpoints" / "best-val.safetensors").network()
    assert sum(row[1] for row in second.rows) == sum(p.numel() for p in network.parameters())


def test_equal_runs_are_equal_and_another_seed_is_not(finished: Path, screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, "checks.keep_every=5"), tmp_path / "again")
    assert rows(tmp_path / "again") == rows(finished)
    run(tiny_config(screen_path, "seed=1"), tmp_path / "other")
    assert rows(tmp_path / "other")[1] != rows(finished)[1]


def test_activation_checkpointing_changes_nothing(finished: Path, screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, "compute.activation_checkpointing=true"), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(finished)


@pytest.mark.slow
def test_worker_processes_change_nothing(screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, phases=PHASES[:1]), tmp_path / "thread")
    run(tiny_config(screen_path, "compute.workers=1", phases=PHASES[:1]), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "thread")


def test_accumulation_is_a_larger_batch(screen_path: Path, tmp_path: Path) -> None:
    whole = tiny_config(screen_path, "network.dropout=0.0", "sets.per_batch=4")
    halves = tiny_config(screen_path, "network.dropout=0.0", "sets.per_batch=2", "sets.accumulation=2")
    run(whole, tmp_path / "whole")
    run(halves, tmp_path / "halves")
    second = last_weights(tmp_path / "halves")
    for name, tensor in last_weights(tmp_path / "whole").items():
        assert torch.allclose(tensor, second[name], rtol=1e-4, atol=1e-6), name


def test_bf16_learns_too(screen_path: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, "compute.precision=bf16-mixed"), tmp_path / "run")
    values = [float(row["val/gene"]) for row in rows(tmp_path / "run") if row["val/gene"]]
    assert values[-1] < values[0]
    assert {tensor.dtype for tensor in last_weights(tmp_path / "run").values()} == {torch.float32}


def test_init_from_takes_weights_and_says_which(finished: Path, screen_path: Path, tmp_path: Path) -> None:
    best = finished / "checkpoints" / "best-val.safetensors"
    told: list[Notice] = []
    values = {"network": {}, "phases": [{**PHASES[0], "steps": 1}]}
    run(tiny_config(screen_path, **values), tmp_path / "run", init_from=best, report=told.append)
    source = load_checkpoint(best)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {transfer["action"] for transfer in record["transplant"]["transfers"]} == {"loaded"}
    assert told[1].title.startswith("Transplant: weights of best-val.safetensors")
    weights = last_weights(tmp_path / "run")
    backbone = [name for name in weights if name.startswith("transformer_backbone.")]
    assert all(torch.equal(weights[name], source.weights[name]) for name in backbone)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "best-val.safetensors")
    assert checkpoint.manifest.training.initial_weights.startswith("best-val.safetensors sha256:")
    assert checkpoint.manifest.model == source.manifest.model


def test_a_transplant_from_embedding_to_expression(screen_path: Path, tmp_path: Path) -> None:
    """The published third round, small: the embedding's encoder and output are drawn anew, the backbone is kept."""
    embedding = tiny_config(screen_path, "data.input_key=X_pca", "network.gene_decoder=[8]")
    with pytest.raises(ConfigError, match=r"scored under 0\.2.*allow-mismatch"):
        run(embedding, tmp_path / "first")
    run(embedding, tmp_path / "first", allow_mismatch=True)
    row = rows(tmp_path / "first")[-1]
    assert float(row["val/total"]) == pytest.approx(float(row["val/embedding"]) + float(row["val/gene"]), rel=1e-5)
    best = tmp_path / "first" / "checkpoints" / "best-val.safetensors"
    run(tiny_config(screen_path, network={}), tmp_path / "third", init_from=best)
    record = json.loads((tmp_path / "third" / "run.json").read_text())
    actions = {transfer["name"]: transfer["action"] for transfer in record["transplant"]["transfers"]}
    assert actions["basal_encoder.0.weight"] == "re-initialised"
    assert actions["project_out.3.weight"] == "re-initialised"
    assert actions["final_down_then_up.0.weight"] == "re-initialised"
    assert actions["gene_decoder.decoder.0.weight"] == "dropped"
    assert actions["pert_encoder.0.weight"] == "loaded"
    assert actions["transformer_backbone.layers.0.self_attn.q_proj.weight"] == "loaded"
    manifest = load_checkpoint(tmp_path / "third" / "checkpoints" / "best-val.safetensors").manifest
    assert (manifest.model.input_dim, manifest.model.input_key, manifest.model.gene_decoder) == (48, None, None)


def test_decoder_weight_of_a_phase(screen_path: Path, tmp_path: Path) -> None:
    config = tiny_config(screen_path, "data.input_key=X_pca", "network.gene_decoder=[8]", "phases.0.decoder_weight=0.5")
    run(config, tmp_path / "run", allow_mismatch=True)
    for row in rows(tmp_path / "run"):
        if row["val/total"]:
            weight = 0.5 if row["phase"] == "frozen" else 1.0
            expected = float(row["val/embedding"]) + weight * float(row["val/gene"])
            assert float(row["val/total"]) == pytest.approx(expected, rel=1e-5)


def test_an_evaluation_can_choose_the_best(screen_path: Path, tmp_path: Path) -> None:
    seen: list[Checkpoint] = []

    def quick_eval(checkpoint: Checkpoint) -> dict[str, float]:
        seen.append(checkpoint)
        return {"score": float(len(seen) == 2)}

    overrides = ("checks.quick_eval_every=1", "checks.select_best=eval/score", "checks.select_mode=max")
    with pytest.raises(ConfigError, match="brings no evaluation"):
        run(tiny_config(screen_path, *overrides), tmp_path / "run")
    result = run(tiny_config(screen_path, *overrides), tmp_path / "run", quick_eval=quick_eval)
    assert [checkpoint.manifest.training.step for checkpoint in seen] == [4, 7, 11, 15, 16]
    assert result.best_record["step"] == 7
    assert [row["eval/score"] for row in rows(tmp_path / "run") if row["eval/score"]] == ["0", "1", "0", "0", "0"]


def test_the_warm_up_record_is_asked_for(screen_path: Path, tmp_path: Path) -> None:
    record = WarmupRecord(perturbation="x", num_cells=2, seed=0, mean=(1.0,))
    result = run(tiny_config(screen_path), tmp_path / "run", warmup=lambda checkpoint: record)
    assert load_checkpoint(result.best).manifest.warmup == record


def test_a_loss_that_is_not_finite_stops_and_is_named(screen_path: Path, tmp_path: Path) -> None:
    config = tiny_config(
        screen_path, phases=[{**PHASES[1], "rates": dict.fromkeys(("encoders", "outputs", "backbone"), 1e18)}]
    )
    with pytest.raises(DivergenceError, match=r"training stopped at step \d+: not finite: loss total") as caught:
        run(config, tmp_path / "run")
    assert "Lower the learning rates" in str(caught.value)
    load_checkpoint(tmp_path / "run" / "checkpoints" / "best-val.safetensors")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"


def test_a_full_disk_keeps_what_was_written(screen_path: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run_dir = tmp_path / "run"

    def fill(progress: object) -> None:
        if progress.step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))

    try:
        with pytest.raises(DataError, match="free some space and continue with --resume"):
            run(tiny_config(screen_path), run_dir, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(run_dir / "checkpoints" / "last.ckpt")["step"] == 7
    load_checkpoint(run_dir / "checkpoints" / "best-val.safetensors")
    assert run(None, run_dir, resume=True).finished
    assert not list(run_dir.rglob("*.part"))


@pytest.mark.parametrize("name", ["raw-staged", "embedding-rounds", "frozen-only", "full", "quick-cpu"])
def test_every_recipe_runs(name: str, screen_path: Path, tmp_path: Path) -> None:
    values = read_yaml(config_path(name))
    small = [f"data.files=['{screen_path}']", "sets.size=8", "sets.per_batch=2", "loggers=[csv]"]
    small += [f"phases.{number}.steps=2" for number in range(len(values["phases"]))]
    small += ["network.hidden_dim=16", "network.num_layers=5", "network.num_heads=2"]
    if name == "embedding-rounds":
        small += ["data.input_key=X_pca", "network.gene_decoder=[8]"]
    config = FinetuneConfig.parse(apply_overrides(values, small))
    result = run(config, tmp_path / "run", allow_mismatch=name == "embedding-rounds")
    assert result.finished
    assert result.step == 2 * len(values["phases"])


@pytest.mark.slow
def test_a_worker_that_dies_is_named(screen_path: Path, tmp_path: Path) -> None:
    from steval.errors import StevalError
    from steval.trainer.fit.feeding import WorkerFeed

    with pytest.raises(StevalError, match=r"a process that reads batches died at batch 0.*--resume"):
        list(WorkerFeed(_Suicide(), range(3), 1))
    assert tmp_path.exists()
    assert screen_path.exists()


class _Suicide:
    """A batch maker whose process is killed."""

    def __call__(self, position: int) -> None:
        os.kill(os.getpid(), 9)


def test_an_optimiser_is_gone_when_the_next_phase_trains(screen_path: Path, tmp_path: Path) -> None:
    """Its moments are twice the weights; Lightning's trainer and what it trains hold each other until they are collected."""
    config = tiny_config(screen_path, "phases.0.steps=2", "phases.1.steps=2")
    alive: list[int] = []

    def count(progress: Progress) -> None:
        found = [one for one in gc.get_objects() if issubclass(type(one), torch.optim.Optimizer)]
        alive.append(sum(bool(one.state) for one in found))

    gc.collect()
    gc.disable()
    try:
        run(config, tmp_path / "run", on_step=count)
    finally:
        gc.enable()
    assert alive[0] > 0 and alive == [alive[0]] * 4
