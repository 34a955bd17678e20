"""Fine-tuning by LoRA adapters: what trains, resume, the adapter file beside its base, and every way it can be wrong."""

import hashlib
import json
import pickle
from pathlib import Path

import anndata as ad
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from steval.checkpoints.adapters.adapter_file import load_adapted, read_adapter, rewrite_adapter
from steval.checkpoints.location import locate_checkpoint
from steval.checkpoints.manifest import read_header
from steval.checkpoints.store import load_checkpoint, save_checkpoint
from steval.cli.app import app
from steval.data.effects.decoding import DecodingSettings
from steval.errors import CheckpointError, ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.state import load_state
from steval.trainer.recipes import recipe_path
from support.tiny_runs import assert_same_run, rows, run, stop_at, tiny_config

LORA = {"rank": 2, "alpha": 6, "dropout": 0.1, "targets": ["attention", "mlp"]}
PHASES = [
    {"name": "lora", "trains": [], "lora": LORA, "steps": 6, "rates": {"adapters": 1e-2}},
]
HEADS = [{**PHASES[0], "trains": ["outputs"], "lora": {**LORA, "targets": "all"}}]


@pytest.fixture(scope="module")
def base(screen_path, tmp_path_factory) -> Path:
    """A checkpoint of a few steps, to start from."""
    directory = tmp_path_factory.mktemp("base") / "run"
    return run(tiny_config(screen_path), directory).best


@pytest.fixture(scope="module")
def adapted(screen_path, base, tmp_path_factory) -> Path:
    """A run of adapters alone from `base`."""
    return run(
        tiny_config(screen_path, phases=PHASES), tmp_path_factory.mktemp("adapted") / "run", init_from=base
    ).run_dir


def adapter_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best-val.adapter.safetensors"


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_alone_train_and_make_the_best_checkpoint_from_the_base(base, adapted):
    first, best = load_checkpoint(base), load_checkpoint(adapted / "checkpoints" / "best-val.safetensors")
    moved = {name for name, tensor in best.weights.items() if not torch.equal(tensor, first.weights[name])}
    assert moved and all("self_attn" in name or ".mlp." in name for name in moved)
    record, own, _ = read_adapter(adapter_of(adapted))
    assert set(record.adapted) == moved
    assert {name for name in own if "/" not in name} == {
        name.removesuffix("weight") + half for name in moved for half in ("lora_a", "lora_b")
    }
    again = load_adapted(base, adapter_of(adapted))
    assert equal(dict(again.weights), dict(best.weights))
    assert torch.equal(again.features, best.features)
    assert again.manifest.training == best.manifest.training
    assert again.digest not in (first.digest, best.digest)
    state = load_state(adapted / "checkpoints" / "last.ckpt")
    assert len(state["optimiser"]["state"]) == 2 * len(moved)  # moments of the adapters alone
    assert adapter_of(adapted).stat().st_size < base.stat().st_size


def test_heads_train_beside_adapters_of_everything(screen_path, base, tmp_path):
    result = run(tiny_config(screen_path, phases=HEADS), tmp_path / "run", init_from=base)
    record, own, _ = read_adapter(adapter_of(result.run_dir))
    assert {name.split(".")[0] for name in record.adapted} == {
        "pert_encoder", "basal_encoder", "transformer_backbone",
    }  # fmt: skip
    assert {name.split(".")[0] for name in own if "/" not in name and "lora_" not in name} == {
        "project_out", "final_down_then_up",
    }  # fmt: skip
    assert equal(
        dict(load_adapted(base, adapter_of(result.run_dir)).weights), dict(load_checkpoint(result.best).weights)
    )


@pytest.mark.parametrize("step", [2, 6], ids=["within", "at its end"])
def test_a_resumed_run_is_the_same_run_and_adapter(screen_path, base, tmp_path, step):
    phases = [*PHASES, {"name": "after", "trains": ["outputs"], "steps": 2, "start": "last"}]
    config = tiny_config(screen_path, phases=phases)
    whole = run(config, tmp_path / "whole", init_from=base)
    assert not run(config, tmp_path / "part", init_from=base, on_step=stop_at(step)).finished
    assert run(None, tmp_path / "part", resume=True).finished
    assert_same_run(whole.run_dir, tmp_path / "part")
    assert rows(whole.run_dir) == rows(tmp_path / "part")
    found = [adapter_of(directory) for directory in (whole.run_dir, tmp_path / "part")]
    assert found[0].exists() == found[1].exists()
    if found[0].exists():
        assert equal(load_file(found[0]), load_file(found[1]))


def test_a_calibrated_checkpoint_has_its_decoding_in_the_adapter(base, adapted, tmp_path):
    path = tmp_path / "best-val.adapter.safetensors"
    path.write_bytes(adapter_of(adapted).read_bytes())
    best = load_checkpoint(adapted / "checkpoints" / "best-val.safetensors")
    chosen = DecodingSettings(kind="carried", network_weight=1.0)
    changed = best.manifest.model_copy(update={"decoding": chosen})
    rewrite_adapter(path, type(best)(best.path, changed, best.weights, best.features, best.controls, best.digest))
    again = load_adapted(base, path)
    assert again.manifest.decoding == chosen
    assert equal(dict(again.weights), dict(best.weights))


def cli(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_predict_score_and_merge_take_base_and_adapter(base, adapted, tmp_path):
    ask = ("--perturbations", first_perturbation(base), "--cells", 12, "--seed", 3, "--cell-type", "left")
    adapter, best = adapter_of(adapted), adapted / "checkpoints" / "best-val.safetensors"
    merged = tmp_path / "merged.safetensors"
    code, _, errors = cli("merge", base, adapter, "-o", merged)
    assert code == 0, errors
    for name, model in (("a", (base, "--adapter", adapter)), ("b", (best,)), ("c", (merged,)), ("d", (base,))):
        code, _, errors = cli("predict", *model, "-o", tmp_path / f"{name}.h5ad", *ask)
        assert code == 0, errors
    cells = [ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in "abcd"]
    values = [one.X.toarray() for one in cells]
    assert (values[0] == values[1]).all() and (values[0] == values[2]).all()
    assert (values[0] != values[3]).any()
    assert str(adapter) in str(dict(cells[0].uns["steval"]))
    code, _, errors = cli(
        "score", base, tmp_path / "scored.h5ad", "--predict", "--adapter", adapter, "--metrics-only", "--metrics", "mae"
    )
    assert code == 0, errors
    record = json.loads((tmp_path / "scored.score" / "score.json").read_text())["record"]
    assert str(adapter) in json.dumps(record)
    code, text, _ = cli("inspect", adapter, "--json")
    assert (code, json.loads(text)["lora"]["rank"]) == (0, 2)
    code, text, _ = cli("inspect", adapter)
    assert (code, "rank 2, alpha 6" in text) == (0, True)
    code, _, errors = cli("predict", adapter, "-o", tmp_path / "e.h5ad", *ask)
    assert (code, "steval merge BASE" in errors) == (3, True)
    code, _, errors = cli("merge", base, adapter, "-o", base)
    assert (code, "take its place" in errors) == (2, True)


def first_perturbation(base: Path) -> str:
    manifest = load_checkpoint(base).manifest
    return next(name for name in manifest.perturbation_names if name != manifest.control)


def rewritten(adapter: Path, path: Path, change) -> Path:
    """The adapter with tensors and record changed, all its digests made anew: what a forger would write."""
    tensors = load_file(adapter)
    record = json.loads(read_header(adapter)["__metadata__"]["steval_adapter"])
    change(tensors, record)
    record["tensors"] = {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tensors.items()
    }
    text = json.dumps(record)
    metadata = {"steval_adapter": text, "steval_adapter_sha256": hashlib.sha256(text.encode()).hexdigest()}
    save_file(tensors, path, metadata=metadata)
    return path


def some(tensors, half="lora_a"):
    return next(name for name in sorted(tensors) if name.endswith(half))


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda t, r: t.update({some(t): t[some(t)] * float("nan")}), "NaN|finite"),
        (lambda t, r: t.update({name: t[name] * 1e25 + 1e25 for name in (some(t), some(t, "lora_b"))}), "NaN|finite|infin"),
        (lambda t, r: t.update({some(t): t[some(t)][:, :3].clone()}), "matrices of shapes"),
        (lambda t, r: t.pop(some(t)), "missing"),
        (lambda t, r: r["adapted"].pop(next(iter(r["adapted"]))), "does not name"),
        (lambda t, r: r["lora"].update(rank=3), "at rank 3"),
        (lambda t, r: r.update(format_version=2), "format_version"),
        (lambda t, r: r["lora"].update(alpha=float("inf")), "alpha"),
        (lambda t, r: t.update({"project_out.0.weight": torch.zeros(2, 2)}), "project_out"),
        (lambda t, r: t.update({"extra.weight": torch.zeros(2)}), "unexpected tensor extra"),
        (lambda t, r: r["borrowed"].pop(next(n for n in r["borrowed"] if "/" not in n)), "missing tensor"),
    ],
    ids=["nan", "overflow", "shape", "half", "unnamed", "rank", "format", "alpha", "head", "extra", "borrowed"],
)  # fmt: skip
def test_a_forged_adapter_is_refused(base, adapted, tmp_path, change, answer):
    path = rewritten(adapter_of(adapted), tmp_path / "a.adapter.safetensors", change)
    with pytest.raises(CheckpointError, match=answer):
        load_adapted(base, path)


def test_another_base_a_changed_byte_and_a_foreign_file_are_refused(base, adapted, tmp_path):
    adapter, other = adapter_of(adapted), tmp_path / "other.safetensors"
    first = load_checkpoint(base)
    weights = dict(first.weights)
    weights["project_out.0.bias"] = weights["project_out.0.bias"] + 1
    save_checkpoint(other, manifest=first.manifest, weights=weights, features=first.features, controls=first.controls)
    with pytest.raises(CheckpointError, match=r"is not for .*1 of the .*project_out\.0\.bias.*trained from"):
        load_adapted(other, adapter)
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.adapter.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        load_adapted(base, tmp_path / "b.adapter.safetensors")
    with pytest.raises(CheckpointError, match="no adapter of steval"):
        load_adapted(base, base)
    with pytest.raises(CheckpointError, match="is an adapter"):
        locate_checkpoint(adapter)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_that_is_called_an_adapter_is_never_run(base, tmp_path, writer):
    class Payload:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "marker", "executed")

    path = tmp_path / "a.adapter.safetensors"
    with path.open("wb") as handle:
        writer({"lora_a": Payload()}, handle)
    for command in (
        ["predict", str(base), "--adapter", str(path), "-o", str(tmp_path / "o.h5ad"), "--all"],
        ["merge", str(base), str(path), "-o", str(tmp_path / "o.safetensors")],
        ["inspect", str(path)],
        ["serve", str(base), "--adapter", f"x={path}"],
    ):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, "safetensors" in done.output) == (3, True), (command, done.output)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_matrices_do_not_train_twice_and_the_recipe_is_whole():
    with pytest.raises(ConfigError, match="trains top whole and has lora"):
        FinetuneConfig.parse({"phases": [{"name": "x", "steps": 1, "trains": ["top"], "lora": {}}]})
    with pytest.raises(ConfigError, match="trains nothing"):
        FinetuneConfig.parse({"phases": [{"name": "x", "steps": 1, "trains": []}]})
    config = FinetuneConfig.load(recipe_path("lora"))
    assert config.phases[0].lora.targets == ("attention", "mlp")
