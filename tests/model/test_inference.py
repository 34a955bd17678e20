"""The arrangement for prediction gives what the network gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.model.config import ModelConfig
from steval.model.inference import ControlTerms, InferenceNetwork
from steval.model.network import StateTransition
from support import golden_models
from support.random_models import configurations, network_and_inputs


def assert_close(left, right, tolerance):
    if right is None:
        assert left is None
    else:
        assert left.shape == right.shape
        assert (left - right).abs().max() <= tolerance * right.abs().max().clamp_min(1)


@given(config=configurations(), head=st.sampled_from(["plain", "down-then-up"]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_equals_the_network_in_every_form(config, head, seed):
    config = ModelConfig.parse({**config.as_dict(), "head": head})
    network, (control_BSG, pert_BSP, batch_BS) = network_and_inputs(config, seed, 2, 6)
    network = network.float()
    controls_NG = control_BSG.flatten(0, 1).float()
    indices_BS = torch.randint(12, (3, 5), generator=torch.Generator().manual_seed(seed))
    pert_BP, batch_BS = pert_BSP.flatten(0, 1)[:3].float(), batch_BS.flatten()[indices_BS]
    padding_BS = torch.arange(5)[None] >= torch.tensor([5, 2, 3])[:, None]
    with torch.no_grad():
        expected = network(controls_NG[indices_BS], pert_BP, batch_BS, padding_BS)
    arranged = InferenceNetwork.from_network(network)
    terms = ControlTerms.concatenate([arranged.encode_controls(part) for part in controls_NG.split(5)])
    assert len(terms) == 12
    for mine, reference in zip(
        arranged.predict(terms, indices_BS, pert_BP, batch_BS, padding_BS),
        expected._replace(hidden_BSC=None),
        strict=True,
    ):
        assert_close(mine, reference, 2e-5)


@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
def test_golden_models(name):
    network, arrays = golden_models.golden_model(name)
    size = network.config.cell_set_size
    one_pert_BP = arrays["in_pert_emb"][::size]
    codes_BS = arrays["in_batch"].unflatten(0, (-1, size)) if "in_batch" in arrays else None
    controls_BSG = arrays["in_ctrl_cell_emb"].unflatten(0, (-1, size))
    with torch.no_grad():
        expected = network(controls_BSG, one_pert_BP, codes_BS)
    arranged = InferenceNetwork.from_network(network)
    terms = arranged.encode_controls(arrays["in_ctrl_cell_emb"])
    indices_BS = torch.arange(len(terms)).unflatten(0, (-1, size))
    prediction = arranged.predict(terms, indices_BS, one_pert_BP, codes_BS)
    assert_close(prediction.output_BSG, expected.output_BSG, 1e-5)
    assert_close(prediction.genes_BSD, expected.genes_BSD, 1e-5)
    assert_close(prediction.confidence_B, expected.confidence_B, 1e-5)


@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
def test_bfloat16_rounds_to_three_digits(name):
    network, arrays = golden_models.golden_model(name)
    pert_BP, controls_NG = arrays["in_pert_emb"][:1], arrays["in_ctrl_cell_emb"]
    codes_BS = arrays["in_batch"][None, :5] if "in_batch" in arrays else None
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        arranged = InferenceNetwork.from_network(network, dtype=dtype)
        prediction = arranged.predict(arranged.encode_controls(controls_NG), torch.arange(5)[None], pert_BP, codes_BS)
        assert prediction.output_BSG.dtype == torch.float32
        outputs.append(prediction.output_BSG)
    assert 0 < (outputs[1] - outputs[0]).abs().max() <= 0.03 * outputs[0].abs().max()


def test_the_network_is_left_alone_and_the_regime_can_be_chosen():
    network, arrays = golden_models.keyless_model("bidirectional")
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    arranged = InferenceNetwork.from_network(network, attention="causal-rope")
    terms = arranged.encode_controls(arrays["in_ctrl_cell_emb"])
    indices_BS = torch.arange(len(terms)).unflatten(0, (-1, network.config.cell_set_size))
    prediction = arranged.predict(terms, indices_BS, arrays["in_pert_emb"][:: network.config.cell_set_size])
    assert_close(prediction.output_BSG.flatten(0, 1), arrays["out_causal_rope"], 1e-5)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_terms_without_a_head_concatenate():
    config = golden_models.golden_model("llama_confidence_noresid")[0].config
    arranged = InferenceNetwork.from_network(StateTransition(config))
    terms = ControlTerms.concatenate([arranged.encode_controls(torch.zeros(2, config.input_dim))] * 2)
    assert terms.head_NK is None
    assert len(terms) == 4
