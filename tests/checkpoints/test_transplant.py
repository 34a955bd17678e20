"""Weights into another network: by name where there are names, and every tensor accounted for."""

from pathlib import Path

import pytest
import torch

from steval.checkpoints.transplant import ACTIONS, Transfer, TransplantReport, one_hot_columns, transplant
from steval.checkpoints.weight_source import Vocabulary, WeightSource, read_weight_source
from steval.errors import CheckpointError
from steval.model.config import GeneDecoderConfig, LlamaConfig, ModelConfig
from steval.model.network import StateTransition

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
HIDDEN = 16


def make_config(**changes) -> ModelConfig:
    backbone = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=24, num_layers=2, num_heads=2, num_key_value_heads=2, head_dim=8
    )
    values = {"input_dim": 9, "output_dim": 9, "pert_dim": 3, "hidden_dim": HIDDEN, "num_encoder_layers": 2}
    return ModelConfig(**{**values, "backbone": backbone, "use_basal_projection": False, **changes})


def make_vocabulary(names="AB", control="ctrl", genes="rstuvwxyz", **changes) -> Vocabulary:
    perturbations = (*names, control)
    values = {
        "perturbations": perturbations,
        "features": torch.eye(len(perturbations)),
        "control": control,
        "input_genes": tuple(genes),
        "output_genes": tuple(genes),
    }
    return Vocabulary(**{**values, **changes})


def make_source(config: ModelConfig, vocabulary: Vocabulary) -> WeightSource:
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(1))
    return WeightSource("source.ckpt", config, network.state_dict(), vocabulary)


def run(source, target, vocabulary, seed=2):
    return transplant(source, target, vocabulary, torch.Generator().manual_seed(seed))


def actions(report):
    return {transfer.name: transfer.action for transfer in report.transfers}


def test_the_same_network_and_names_load_whole():
    source = make_source(make_config(), make_vocabulary())
    state, report = run(source, source.config, make_vocabulary())
    assert set(actions(report).values()) == {"loaded"}
    assert all(torch.equal(state[name], source.weights[name]) for name in source.weights)


def test_round_three_from_2058_to_18080():
    decoder = GeneDecoderConfig(latent_dim=2058, gene_dim=300, hidden_dims=(8,))
    before = make_config(input_dim=2058, output_dim=2058, input_key="X_state", gene_decoder=decoder)
    source = make_source(
        before, make_vocabulary(input_genes=None, output_genes=tuple(map(str, range(300))), batches=("b",))
    )
    genes = tuple(f"gene{i}" for i in range(18_080))
    state, report = run(
        source, make_config(input_dim=18_080, output_dim=18_080), make_vocabulary(input_genes=genes, output_genes=genes)
    )
    done = actions(report)
    changed = {
        "basal_encoder.weight",
        "project_out.3.weight",
        "project_out.3.bias",
        "final_down_then_up.0.weight",
        "final_down_then_up.0.bias",
        "final_down_then_up.2.weight",
        "final_down_then_up.2.bias",
    }
    assert {name for name, action in done.items() if action == "re-initialised"} == changed
    assert {name.partition(".")[0] for name, action in done.items() if action == "dropped"} == {"gene_decoder"}
    assert all(action == "loaded" for name, action in done.items() if name.startswith("transformer_backbone"))
    assert done["pert_encoder.0.weight"] == "loaded"
    assert done["basal_encoder.bias"] == "loaded"
    network = StateTransition(make_config(input_dim=18_080, output_dim=18_080))
    network.load_state_dict(state)
    assert len(report.transfers) == len(source.weights.keys() | state.keys())


def test_perturbations_go_by_name_and_the_controls_are_one():
    source = make_source(make_config(), make_vocabulary("AB", control="DMSO"))
    target = make_vocabulary("CBDA", control="non-targeting")
    state, report = run(source, make_config(pert_dim=5), target)
    old, new = source.weights["pert_encoder.0.weight"], state["pert_encoder.0.weight"]
    assert actions(report)["pert_encoder.0.weight"] == "remapped"
    assert torch.equal(new[:, 3], old[:, 0])  # A
    assert torch.equal(new[:, 1], old[:, 1])  # B
    assert torch.equal(new[:, 4], old[:, 2])  # the control
    fresh = StateTransition(make_config(pert_dim=5))
    fresh.reset(torch.Generator().manual_seed(2))
    assert torch.equal(new[:, [0, 2]], fresh.state_dict()["pert_encoder.0.weight"][:, [0, 2]])
    assert "3 of 5 perturbations found" in "\n".join(report.lines())


def test_the_same_shape_in_another_order_is_not_loaded_by_position():
    source = make_source(make_config(), make_vocabulary("AB", genes="rstuvwxyz"))
    state, report = run(source, make_config(), make_vocabulary("BA", genes="zyxwvutsr"))
    for name, dim in (
        ("basal_encoder.weight", 1),
        ("project_out.3.weight", 0),
        ("project_out.3.bias", 0),
        ("final_down_then_up.0.weight", 1),
        ("final_down_then_up.2.weight", 0),
    ):
        assert actions(report)[name] == "remapped"
        assert torch.equal(state[name], source.weights[name].flip(dim))
    assert torch.equal(state["pert_encoder.0.weight"][:, 0], source.weights["pert_encoder.0.weight"][:, 1])


def test_the_moved_network_predicts_the_same_for_the_same_names():
    source = make_source(make_config(), make_vocabulary("AB", genes="rstuvwxyz"))
    state, _ = run(source, make_config(), make_vocabulary("BA", genes="zyxwvutsr"))
    old, new = StateTransition(make_config()).eval(), StateTransition(make_config()).eval()
    old.load_state_dict(source.weights)
    new.load_state_dict(state)
    cells = torch.rand(1, 4, 9)
    with torch.no_grad():
        expected = old(cells, torch.tensor([[1.0, 0, 0]])).output_BSG
        found = new(cells.flip(-1), torch.tensor([[0.0, 1, 0]])).output_BSG.flip(-1)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_batches_go_by_name():
    batched = {"batch_encoder": True, "batch_token": True}
    source = make_source(make_config(batch_dim=2, **batched), make_vocabulary(batches=("p", "q")))
    state, report = run(source, make_config(batch_dim=3, **batched), make_vocabulary(batches=("q", "r", "p")))
    for name in ("batch_encoder.weight", "batch_classifier.0.weight", "batch_classifier.0.bias"):
        assert actions(report)[name] == "remapped"
        assert torch.equal(state[name][[2, 0]], source.weights[name])
    _, report = run(source, make_config(batch_dim=2, **batched), make_vocabulary(batches=()))
    assert actions(report)["batch_encoder.weight"] == "re-initialised"


def test_feature_vectors_load_as_they_are_and_never_into_one_hot():
    dense = make_vocabulary(features=torch.rand(3, 3) + 0.1)
    source = make_source(make_config(), dense)
    assert actions(run(source, make_config(), dense)[1])["pert_encoder.0.weight"] == "loaded"
    _, report = run(source, make_config(), make_vocabulary())
    assert actions(report)["pert_encoder.0.weight"] == "re-initialised"
    assert "one-hot" in "\n".join(report.lines())


def test_one_hot_columns():
    features = torch.tensor([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert one_hot_columns(features, ["A", "ctrl", "B"]) == ["B", "", "A"]
    for other in (torch.ones(2, 2), torch.eye(2) * 2, torch.tensor([[1.0, 0], [1, 0]]), torch.zeros(2, 2)):
        assert one_hot_columns(other, ["A", "B"]) is None


def test_every_tensor_is_in_the_report_once_and_fresh_values_are_seeded():
    source = make_source(make_config(num_decoder_layers=3), make_vocabulary())
    target = make_config(num_encoder_layers=1, num_decoder_layers=1, use_basal_projection=True)
    state, report = run(source, target, make_vocabulary())
    names = [transfer.name for transfer in report.transfers]
    assert sorted(names) == sorted(source.weights.keys() | state.keys())
    assert sum(report.count(action) for action in ACTIONS) == len(names)
    again, _ = run(source, target, make_vocabulary())
    other, _ = run(source, target, make_vocabulary(), seed=3)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["basal_encoder.0.weight"], other["basal_encoder.0.weight"])


def test_a_backbone_that_does_not_fit_is_an_error():
    source = make_source(make_config(), make_vocabulary())
    other = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_key_value_heads=1, head_dim=8
    )
    with pytest.raises(CheckpointError, match="hidden size 16"):
        run(source, make_config(hidden_dim=8, backbone=other), make_vocabulary())


def test_an_arc_run_is_a_source():
    source = read_weight_source(GOLDEN / "arc_run")
    assert source.vocabulary.perturbations == ("MED12", "SRC", "STAT1", "TET1", "TMSB4X", "non-targeting")
    assert len(source.vocabulary.input_genes) == 1000
    vocabulary = Vocabulary(
        ("STAT1", "NEW", "non-targeting"), torch.eye(3), "non-targeting", input_genes=source.vocabulary.input_genes[:10]
    )
    config = ModelConfig.parse({**source.config.as_dict(), "input_dim": 10, "output_dim": 10, "pert_dim": 3})
    state, report = run(source, config, vocabulary)
    assert torch.equal(state["pert_encoder.0.weight"][:, 0], source.weights["pert_encoder.0.weight"][:, 2])
    assert torch.equal(state["basal_encoder.weight"], source.weights["basal_encoder.weight"][:, :10])
    assert "embed_tokens" in " ".join(source.notes)
    assert report.source.startswith("final.ckpt sha256:")


def test_a_report_is_never_empty():
    whole = TransplantReport("a", (Transfer("w", "loaded", "", (2,), (2,)),))
    assert whole.lines() == [
        "weights of a: 1 loaded, 0 remapped, 0 re-initialised, 0 dropped",
        "every tensor is loaded as it is",
    ]
    part = TransplantReport("a", (Transfer("w", "dropped", "no such tensor", (2,), None),))
    assert len(part.lines()) == 2 and "dropped: w" in part.lines()[1]
