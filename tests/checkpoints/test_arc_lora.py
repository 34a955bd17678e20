"""LoRA checkpoints under peft's names: the numbers of the sum, the base kept apart, and every broken form refused by name."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.adapters.adapter_file import load_adapted
from steval.checkpoints.arc import read_arc
from steval.checkpoints.safe_load import load_foreign
from steval.checkpoints.store import load_checkpoint
from steval.cli.app import app
from steval.errors import CheckpointError
from steval.model.lora import LoraPair, attach, merged, split_pairs
from steval.model.network import StateTransition

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RANK, ALPHA = 3, 5.0
FORMS = {
    "llama-attention": ("llama_bidir_all_x", ("self_attn.q_proj", "self_attn.v_proj")),
    "llama-mlp": ("llama_residual_decoder_batch", ("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")),
    "gpt2-attention": ("gpt2_hvg", ("attn.c_attn", "attn.c_proj")),
    "gpt2-mlp": ("gpt2_hvg", ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
}
"""Golden model, and the maps of each block that get an adapter."""


def lora_file(path: Path, form: str) -> dict[str, np.ndarray]:
    """A golden checkpoint as arc-state writes one with LoRA on; returns the weights it means, added up here in numpy."""
    name, targets = FORMS[form]
    content = load_foreign(GOLDEN / "forward" / f"{name}.ckpt")
    generator = torch.Generator().manual_seed(0)
    state, expected = {}, {}
    for key, tensor in content["state_dict"].items():
        module, _, last = key.rpartition(".")
        renamed = key.replace("transformer_backbone.", "transformer_backbone.base_model.model.")
        expected[key] = tensor.numpy()
        if not any(module.endswith(target) for target in targets):
            state[renamed] = tensor
            continue
        inside = renamed.rpartition(".")[0]
        if last == "bias":  # trained biases are in their place
            tensor = tensor + torch.rand(tensor.shape, generator=generator)
            expected[key] = tensor.numpy()
        state[f"{inside}.base_layer.{last}"] = tensor
        if last == "weight":
            transposed = name.startswith("gpt2")
            outputs, inputs = tensor.shape[::-1] if transposed else tensor.shape
            a = torch.rand(RANK, inputs, generator=generator) - 0.5
            b = torch.rand(outputs, RANK, generator=generator) - 0.5
            state |= {f"{inside}.lora_A.default.weight": a, f"{inside}.lora_B.default.weight": b}
            added = ALPHA / RANK * b.numpy() @ a.numpy()
            expected[key] = tensor.numpy() + (added.T if transposed else added)
    lora = {"enable": True, "r": RANK, "alpha": ALPHA, "dropout": 0.05, "bias": "all", "target": "auto"}
    hyper = {key: value for key, value in content["hyper_parameters"].items() if key != "loss_fn"}  # a stand-in here
    hyper["lora"] = lora
    torch.save({**content, "state_dict": state, "hyper_parameters": hyper}, path)
    return expected


def inputs_of(model, sets=2):
    generator = torch.Generator().manual_seed(1)
    config = model.config
    batch = torch.zeros(sets, config.cell_set_size, dtype=torch.long)
    control = 3 * torch.rand(sets, config.cell_set_size, config.input_dim, generator=generator)
    return control, torch.randn(sets, config.pert_dim, generator=generator), batch


@pytest.mark.parametrize("form", FORMS)
def test_adapters_are_added_and_can_be_kept_apart(tmp_path, form):
    expected = lora_file(tmp_path / "lora.ckpt", form)
    model = read_arc(tmp_path / "lora.ckpt")
    plain = read_arc(GOLDEN / "forward" / f"{FORMS[form][0]}.ckpt")
    assert model.config == plain.config
    assert model.weights.keys() == plain.weights.keys()
    for name, tensor in model.weights.items():
        assert np.abs(tensor.numpy() - expected[name]).max() <= 1e-6, name
        if name in model.adapters.pairs or name.endswith("bias"):
            continue
        assert torch.equal(model.base[name], plain.weights[name])
    assert all(torch.equal(model.base[name], plain.weights[name]) for name in model.adapters.pairs)
    assert any("rank 3 (alpha 5)" in note for note in model.notes)
    together, apart = (StateTransition(model.config).eval() for _ in range(2))
    together.load_state_dict(model.weights)
    apart.load_state_dict(model.base)
    attached = attach(apart, model.adapters.pairs, model.adapters.scale)
    with torch.no_grad():
        outputs = [network(*inputs_of(model)).output_BSG for network in (together, apart)]
        assert (outputs[0] - outputs[1]).abs().max() <= 1e-5 * outputs[0].abs().max()
        weights, pairs = split_pairs(apart.state_dict())
        again = merged(weights, pairs, model.adapters.scale)
        assert all(torch.equal(again[name], model.weights[name]) for name in again)
        attached.remove()
        assert apart.state_dict().keys() == together.state_dict().keys()
        assert not torch.equal(apart(*inputs_of(model)).output_BSG, outputs[1])


def test_convert_and_inspect_take_them(tmp_path):
    lora_file(tmp_path / "lora.ckpt", "llama-attention")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "lora.ckpt"), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["adapters"] == {"rank": 3, "alpha": 5.0, "matrices": 4}
    model = read_arc(tmp_path / "lora.ckpt")
    names = ["non-targeting", *(f"P{number}" for number in range(1, model.config.pert_dim))]
    torch.save(dict(zip(names, torch.eye(len(names)), strict=True)), tmp_path / "map.pt")
    (tmp_path / "genes.txt").write_text("\n".join(f"G{i}" for i in range(model.config.input_dim)))
    named = ["--perturbation-map", tmp_path / "map.pt", "--genes", tmp_path / "genes.txt"]
    together, apart, adapter = (tmp_path / f"{name}.safetensors" for name in ("together", "apart", "a.adapter"))
    for out, more in ((together, []), (apart, ["--adapter", adapter])):
        arguments = ["convert", tmp_path / "lora.ckpt", "-o", out, *named, *more]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
    found = load_adapted(apart, adapter)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in load_checkpoint(together).weights.items())
    assert all(torch.equal(load_checkpoint(apart).weights[name], tensor) for name, tensor in model.base.items())


def changed(content, what):
    """The file with one thing broken."""
    state, hyper = content["state_dict"], content["hyper_parameters"]
    a = next(name for name in state if name.endswith("q_proj.lora_A.default.weight"))
    b = a.replace("lora_A", "lora_B")
    if what == "half":
        del state[b]
    elif what == "rank":
        state[a] = state[a][:2]
    elif what == "width":
        state[b] = torch.zeros(7, RANK)
    elif what == "nan":
        state[a] = state[a] * float("nan")
    elif what == "whole numbers":
        state[a] = state[a].int()
    elif what == "nowhere":
        state[a.replace("q_proj", "z_proj")] = state[a]
        state[b.replace("q_proj", "z_proj")] = state[b]
    elif what == "second adapter":
        state[a.replace("default", "other")] = state[a]
    elif what == "another form":
        state[a.replace("lora_A.default.weight", "lora_magnitude_vector.default.weight")] = torch.ones(4)
    elif what == "no rank":
        del hyper["lora"]["r"]
    elif what == "alpha":
        hyper["lora"]["alpha"] = float("nan")
    elif what == "rslora":
        hyper["lora"]["use_rslora"] = True
    elif what == "none there":
        content["state_dict"] = {
            name.replace("base_model.model.", "").replace("base_layer.", ""): tensor
            for name, tensor in state.items()
            if "lora_" not in name
        }
    return content


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("half", "lora_B is missing"),
        ("rank", r"lora_A has shape \[2, 48\]"),
        ("width", r"lora_B has shape \[7, 3\]"),
        ("nan", "not finite"),
        ("whole numbers", "no floating point numbers"),
        ("nowhere", "no matrix of the network"),
        ("second adapter", "beside the one called default"),
        ("another form", "another form than LoRA"),
        ("no rank", r"lora\.r"),
        ("alpha", r"lora\.alpha"),
        ("rslora", "use_rslora"),
        ("none there", "no adapter is in the file"),
    ],
)
def test_broken_adapters_are_refused_by_name(tmp_path, what, answer):
    path = tmp_path / "lora.ckpt"
    lora_file(path, "llama-attention")
    torch.save(changed(copy.deepcopy(load_foreign(path)), what), path)
    with pytest.raises(CheckpointError, match=answer):
        read_arc(path)


def test_another_network_with_the_same_tensors_is_refused(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "final.ckpt").write_bytes((GOLDEN / "forward" / "llama_mask_attn.ckpt").read_bytes())
    (run / "config.yaml").write_text("model: {name: pseudobulk}\n")
    with pytest.raises(CheckpointError, match="'pseudobulk', another network"):
        read_arc(run)
    (run / "config.yaml").write_text("model: {name: state}\n")
    assert read_arc(run).config.mask_attn


def test_a_pair_is_the_product_of_its_matrices():
    pair = LoraPair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0], [5.0]]))
    assert pair.delta(2.0, transposed=False).tolist() == [[6.0, 12.0], [8.0, 16.0], [10.0, 20.0]]
    assert pair.delta(2.0, transposed=True).shape == (2, 3)
