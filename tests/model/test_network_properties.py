"""What must hold of any ST network, whatever its weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.errors import ConfigError
from steval.model.config import ModelConfig
from support import golden_models
from support.random_models import GENES, configurations, network_and_inputs


def assert_close(left, right):
    if left is None:
        assert right is None
    else:
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


@given(config=configurations(), seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_unequal_sets_in_a_batch_equal_each_alone(config, seed, sizes):
    """Padding anywhere in a set changes nothing, whatever numbers it holds."""
    network, inputs = network_and_inputs(config, seed, len(sizes), 7)
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.randperm(7, generator=generator)[:size].sort().values for size in sizes]
    padding_BS = torch.ones(len(sizes), 7, dtype=torch.bool)
    for row, cells in enumerate(kept):
        padding_BS[row, cells] = False
    together = network(*inputs, padding_BS)
    for row, cells in enumerate(kept):
        alone = network(*(rows[row : row + 1, cells] for rows in inputs))
        assert_close(together.output_BSG[row, cells], alone.output_BSG[0])
        if alone.genes_BSD is not None:
            assert_close(together.genes_BSD[row, cells], alone.genes_BSD[0])
        if alone.confidence_B is not None:
            assert_close(together.confidence_B[row], alone.confidence_B[0])
        if alone.batch_logits_BK is not None:
            assert_close(together.batch_logits_BK[row], alone.batch_logits_BK[0])


@given(config=configurations(attention=st.just("bidirectional")), seed=st.integers(0, 99), cells=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_permuting_cells_permutes_outputs_when_bidirectional(config, seed, cells):
    network, inputs = network_and_inputs(config, seed, 2, cells)
    order = torch.randperm(cells, generator=torch.Generator().manual_seed(seed))
    straight, permuted = network(*inputs), network(*(rows[:, order] for rows in inputs))
    assert_close(straight.output_BSG[:, order], permuted.output_BSG)
    assert_close(straight.confidence_B, permuted.confidence_B)


@given(
    config=configurations(attention=st.sampled_from(["causal", "causal-rope"])),
    seed=st.integers(0, 99),
    cut=st.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_causal_cells_do_not_see_later_ones(config, seed, cut):
    network, inputs = network_and_inputs(config, seed, 2, 6)
    assert_close(network(*inputs).output_BSG[:, :cut], network(*(rows[:, :cut] for rows in inputs)).output_BSG)


@given(config=configurations().filter(lambda config: config.mask_attn), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_masked_attention_makes_cells_independent(config, seed):
    network, inputs = network_and_inputs(config, seed, 1, 5)
    together = network(*inputs).output_BSG
    alone = [network(*(rows[:, cell : cell + 1] for rows in inputs)).output_BSG for cell in range(5)]
    assert_close(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("form", ["[B,P]", "[B,1,P]"])
@torch.no_grad()
def test_one_perturbation_for_all_cells_of_a_set(form):
    network, arrays = golden_models.golden_model("llama_bidir_all_x")
    control_BSG, pert_BSP = arrays["in_ctrl_cell_emb"][None], arrays["in_pert_emb"][None, :1]
    short = pert_BSP[:, 0] if form == "[B,P]" else pert_BSP
    expected = network(control_BSG, pert_BSP.expand(-1, control_BSG.shape[1], -1)).output_BSG
    torch.testing.assert_close(network(control_BSG, short).output_BSG, expected)


def test_reset_depends_on_the_generator_alone():
    network, _ = golden_models.golden_model("llama_confidence_noresid")
    draws = []
    for seed in (1, 1, 2):
        network.reset(torch.Generator().manual_seed(seed))
        draws.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone())
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"activation": "swish"}, "activation", id="unknown activation"),
        pytest.param({"attention": "causal-rope", "backbone": "gpt2"}, "causal-rope. is for llama", id="gpt2 rope"),
        pytest.param({"batch_token": True, "batch_dim": None}, "need batch_dim", id="no batch codes"),
        pytest.param(
            {"gene_decoder": {"latent_dim": GENES, "gene_dim": 3, "hidden_dims": (4, 5), "residual": True}},
            "equal in pairs",
            id="residual decoder",
        ),
        pytest.param(
            {"input_dim": 7, "output_dim": 7, "output_space": "all", "head": "down-then-up", "predict_residual": True},
            "8 at least, got 7",
            id="no bottleneck left",
        ),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    network, _ = golden_models.golden_model("llama_batch_token")
    values = {**network.config.as_dict(), "input_dim": GENES, "output_dim": GENES, **change}
    if values["backbone"] == "gpt2":
        values["backbone"] = golden_models.golden_model("gpt2_hvg")[0].config.backbone.as_dict() | {"hidden_size": 48}
    with pytest.raises(ConfigError, match=message):
        ModelConfig.parse(values)


def test_a_batch_encoder_needs_batch_codes():
    network, _ = golden_models.golden_model("llama_residual_decoder_batch")
    with pytest.raises(ValueError, match="batch_BS"):
        network(torch.zeros(1, 2, 30), torch.zeros(1, 11))
