"""arc-state files as steval reads them: configuration, regime, names, and the numbers that arc-state computed."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from steval.checkpoints.arc import read_arc
from steval.checkpoints.arc_config import choose_attention
from steval.checkpoints.arc_maps import read_vocabulary
from steval.errors import CheckpointError, ConfigError
from steval.model.network import StateTransition

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FORWARD = sorted((GOLDEN / "forward").glob("*.ckpt"))
RECORDED_WITH = {"llama_causal_emb_decoder": "causal-rope"}
"""Models without the regime's key whose recorded outputs come from another regime than the one steval chooses."""


def network_of(model) -> StateTransition:
    network = StateTransition(model.config).eval()
    network.load_state_dict(model.weights)
    return network


def predict(network, arrays, prefix_rows=None):
    size = prefix_rows or network.config.cell_set_size
    inputs = []
    for key in ("in_ctrl_cell_emb", "in_pert_emb", "in_batch"):
        rows = torch.from_numpy(arrays[key]) if key in arrays else None
        inputs.append(None if rows is None else rows[: size if prefix_rows else None].unflatten(0, (-1, size)))
    with torch.no_grad():
        return network(*inputs)


def assert_parity(ours, recorded):
    assert np.abs(ours.flatten(0, 1).numpy() - recorded).max() <= 1e-5 * np.abs(recorded).max()


@pytest.mark.parametrize("path", FORWARD, ids=lambda path: path.stem)
def test_golden_files_compute_what_arc_state_computed(path):
    model = read_arc(path, RECORDED_WITH.get(path.stem))
    network = network_of(model)
    with np.load(path.with_suffix(".npz")) as arrays:
        prediction = predict(network, arrays)
        assert_parity(prediction.output_BSG, arrays["out_preds"])
        assert_parity(predict(network, arrays, len(arrays["short_preds"])).output_BSG, arrays["short_preds"])
        assert (prediction.genes_BSD is not None) == ("out_counts" in arrays)
        if "out_counts" in arrays:
            assert_parity(prediction.genes_BSD, arrays["out_counts"])


@pytest.mark.parametrize("regime", ["bidirectional", "causal", "causal-rope"])
def test_one_keyless_file_gives_the_three_recorded_predictions(regime):
    with np.load(GOLDEN / "regimes" / "keyless.npz") as arrays:
        prediction = predict(network_of(read_arc(GOLDEN / "regimes" / "keyless.ckpt", regime)), arrays)
        assert_parity(prediction.output_BSG, arrays[f"out_{regime.replace('-', '_')}"])


def test_the_run_directory_gives_names_and_codes():
    model = read_arc(GOLDEN / "arc_run")
    vocabulary = model.vocabulary
    assert list(vocabulary.features) == ["MED12", "SRC", "STAT1", "TET1", "TMSB4X", "non-targeting"]
    assert torch.equal(torch.stack(list(vocabulary.features.values())), torch.eye(6))
    assert (len(vocabulary.batches), vocabulary.batches[0], vocabulary.batches[47]) == (48, "Flex_1_01", "Flex_3_16")
    assert vocabulary.cell_types == ("H1",)
    assert (len(vocabulary.genes), vocabulary.genes[:2]) == (1000, ("CCNL2", "SSU72"))
    assert vocabulary.columns.as_dict() == {
        "perturbation": "target_gene",
        "control": "non-targeting",
        "cell_type": "cell_type",
        "batch": "batch",
    }
    assert model.training.step == 12
    assert model.training.seed == 42
    assert model.dropped == ("transformer_backbone.embed_tokens.weight",)
    assert model.config.gene_decoder is None  # decoder_cfg is there, but with raw input there is no decoder
    assert model.config.cell_set_size == 16


def test_a_checkpoint_inside_its_run_directory_finds_the_names():
    model = read_arc(GOLDEN / "arc_run" / "checkpoints" / "final.ckpt")
    assert model.vocabulary.cell_types == ("H1",)
    assert "from the run directory arc_run" in " ".join(model.notes)


@pytest.mark.parametrize(
    ("kind", "kwargs", "expected", "recorded", "words"),
    [
        ("llama", {"bidirectional_attention": True}, "bidirectional", True, "records"),
        ("llama", {"bidirectional_attention": False}, "causal-rope", True, "0.9.32"),
        ("llama", {}, "bidirectional", False, "--attention causal|causal-rope"),
        ("llama", {"bidirectional_attention": None}, "bidirectional", False, "--probe"),
        ("GPT2", {}, "causal", False, "--probe"),
        ("GPT2", {"bidirectional_attention": True}, "causal", False, "whatever the key"),
    ],
)
def test_the_regime_is_taken_or_chosen_with_its_reason(kind, kwargs, expected, recorded, words):
    hyper = {"transformer_backbone_key": kind, "transformer_backbone_kwargs": kwargs}
    choice = choose_attention(hyper)
    assert (choice.attention, choice.recorded) == (expected, recorded)
    assert words in choice.reason
    assert choose_attention(hyper, "causal").attention == "causal"
    with pytest.raises(ConfigError, match="sideways"):
        choose_attention(hyper, "sideways")


def altered(tmp_path: Path, change, source: str = "forward/llama_bidir_all_x.ckpt") -> Path:
    """A golden checkpoint after `change(hyper_parameters, state_dict)`."""
    content = torch.load(GOLDEN / source, weights_only=False)
    change(content["hyper_parameters"], content["state_dict"])
    path = tmp_path / "altered.ckpt"
    torch.save(content, path)
    return path


def _lora_tensor(hyper, state):
    name = "transformer_backbone.base_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    state[name] = torch.zeros(4, 48)


def _cut(hyper, state):
    state["project_out.0.weight"] = state["project_out.0.weight"][:, :40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda h, s: h.update(lora={"enable": True}), "LoRA adapters", id="lora-flag"),
        pytest.param(_lora_tensor, "LoRA adapters", id="lora-tensors"),
        pytest.param(lambda h, s: h.update(finetune_vci_decoder=True), "finetune_vci_decoder", id="vci"),
        pytest.param(lambda h, s: h.update(transformer_decoder=True), "transformer_decoder", id="transformer"),
        pytest.param(
            lambda h, s: h["transformer_backbone_kwargs"].update(attention_bias=True), "attention_bias", id="bias"
        ),
        pytest.param(
            lambda h, s: h["transformer_backbone_kwargs"].update(hidden_act="relu"), "'relu'", id="activation"
        ),
        pytest.param(lambda h, s: h.update(transformer_backbone_key="mamba"), "'mamba'", id="backbone"),
        pytest.param(lambda h, s: s.update(surprise=torch.zeros(2)), "unknown tensor surprise", id="unknown-tensor"),
        pytest.param(lambda h, s: s.pop("transformer_backbone.norm.weight"), "missing tensor", id="missing-tensor"),
        pytest.param(_cut, "has shape", id="wrong-shape"),
        pytest.param(lambda h, s: h.pop("cell_set_len"), "lacks 'cell_set_len'", id="missing-setting"),
        pytest.param(lambda h, s: s.pop("pert_encoder.0.weight"), "pert_encoder.0.weight", id="no-encoder"),
        pytest.param(lambda h, s: h.update(activation="tanh"), "activation", id="unknown-activation"),
        pytest.param(lambda h, s: h.update(transformer_backbone_kwargs="x"), "cannot be read", id="kwargs-text"),
        pytest.param(
            lambda h, s: s.update({"project_out.0.bias": torch.zeros(60, dtype=torch.int64)}), "int64", id="integers"
        ),
        pytest.param(lambda h, s: s.update({"project_out.0.bias": [1.0]}), "not a tensor", id="list"),
        pytest.param(
            lambda h, s: s.update({"basal_encoder.weight": torch.ones(3)}), "cannot be read|shape", id="one-dim"
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        read_arc(altered(tmp_path, change))
    assert raised.value.exit_code == 3


def test_flags_that_change_nothing_are_noted(tmp_path):
    model = read_arc(altered(tmp_path, lambda h, s: h.update(use_effect_gating_token=True)))
    assert "use_effect_gating_token is on" in " ".join(model.notes)


def test_half_precision_becomes_float32(tmp_path):
    path = altered(tmp_path, lambda h, s: s.update({name: t.half() for name, t in s.items()}))
    assert {tensor.dtype for tensor in read_arc(path).weights.values()} == {torch.float32}


def copy_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "arc_run", run)
    for path in [run, *run.rglob("*")]:
        path.chmod(0o755)
    return run


def test_older_runs_keep_the_batch_map_as_a_plain_pickle(tmp_path):
    run = copy_run(tmp_path)
    content = torch.load(run / "batch_onehot_map.torch", weights_only=False)
    (run / "batch_onehot_map.torch").unlink()
    (run / "batch_onehot_map.pkl").write_bytes(pickle.dumps(content))
    assert read_arc(run).vocabulary.batches == read_arc(GOLDEN / "arc_run").vocabulary.batches
    (run / "batch_onehot_map.pkl").write_bytes(pickle.dumps({"b": 1, "a": 0}))
    assert read_arc(run).vocabulary.batches == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("batch_onehot_map.torch", {"a": 0, "b": 2}, "its codes are not 0 to 1"),
        ("batch_onehot_map.torch", {"a": torch.ones(1), "b": torch.ones(2)}, "neither a code|not one-hot"),
        ("batch_onehot_map.torch", [1], "mapping of names"),
        ("pert_onehot_map.pt", {"a": torch.ones(2), "b": torch.ones(3)}, "different shapes"),
        ("pert_onehot_map.pt", {}, "is empty"),
        ("var_dims.pkl", [1], "must hold a mapping"),
    ],
)
def test_maps_that_make_no_sense_are_refused(tmp_path, name, content, message):
    run = copy_run(tmp_path)
    if name.endswith(".pkl"):
        (run / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, run / name)
    with pytest.raises(CheckpointError, match=message):
        read_arc(run)


def test_the_best_checkpoint_of_a_run_is_taken_and_the_others_named(tmp_path):
    run = copy_run(tmp_path)
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copy(run / "checkpoints" / "final.ckpt", run / "checkpoints" / name)
    model = read_arc(run)
    assert model.checkpoint_path.name == "best.ckpt"
    assert "also there: final.ckpt, last.ckpt" in model.notes[0]


def test_a_directory_or_file_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        read_arc(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_arc(tmp_path / "none.ckpt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="needs state_dict and hyper_parameters, found weights"):
        read_arc(tmp_path / "other.ckpt")


def test_the_key_of_the_regime_is_also_read_from_config_yaml(tmp_path):
    run = copy_run(tmp_path)
    content = torch.load(run / "checkpoints" / "final.ckpt", weights_only=False)
    del content["hyper_parameters"]["transformer_backbone_kwargs"]["bidirectional_attention"]
    torch.save(content, run / "checkpoints" / "final.ckpt")
    assert read_arc(run).regime.recorded
    text = (run / "config.yaml").read_text().replace("bidirectional_attention: true", "other: 1")
    (run / "config.yaml").write_text(text)
    assert not read_arc(run).regime.recorded


def test_a_gpt2_position_table_that_is_not_zero_is_refused(tmp_path):
    source = GOLDEN / "forward" / "gpt2_hvg.ckpt"
    values = torch.load(source, weights_only=False)
    values["state_dict"]["transformer_backbone.wpe.weight"][2, 1] = 0.5
    torch.save(values, tmp_path / "positions.ckpt")
    with pytest.raises(CheckpointError, match="position table that is not zero"):
        read_arc(tmp_path / "positions.ckpt")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_one_hot_vectors_of_any_type_are_codes(tmp_path, dtype):
    torch.save(
        dict(zip("ba", torch.eye(2, dtype=torch.uint8).to(dtype), strict=True)), tmp_path / "batch_onehot_map.pt"
    )
    assert read_vocabulary(tmp_path, {}).batches == ("b", "a")


@pytest.mark.parametrize("content", [{"a": False, "b": True}, {"a": torch.tensor(True), "b": torch.tensor(False)}])
@pytest.mark.parametrize("stem", ["batch_onehot_map", "cell_type_onehot_map", "pert_onehot_map"])
def test_booleans_are_no_codes_and_no_vectors(tmp_path, stem, content):
    torch.save(content, tmp_path / f"{stem}.pt")
    with pytest.raises(CheckpointError, match=rf"{stem}\.pt: ('a' h|its vectors)"):
        read_vocabulary(tmp_path, {})


def test_vectors_of_booleans_are_features(tmp_path):
    torch.save({"a": torch.tensor([True, False])}, tmp_path / "pert_onehot_map.pt")
    assert read_vocabulary(tmp_path, {}).features["a"].tolist() == [1.0, 0.0]
