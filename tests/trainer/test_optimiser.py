"""What trains, at which rate and with which decay: the phases of docs/finetuning.md."""

import pytest
import torch

from steval.errors import ConfigError
from steval.model.config import LlamaConfig, ModelConfig
from steval.model.network import StateTransition
from steval.trainer.config import OptimiserSettings
from steval.trainer.fit.optimiser import build_optimiser, freeze, parameter_sets, rates_at, set_rates
from steval.trainer.settings.phases import PhaseSettings


@pytest.fixture
def network() -> StateTransition:
    """Six blocks, so that top is 3 to 5, middle 1 and 2, lower 0; with batch encoder."""
    backbone = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_layers=6, num_heads=2, num_key_value_heads=2, head_dim=4
    )
    return StateTransition(
        ModelConfig(
            input_dim=16, output_dim=16, pert_dim=3, hidden_dim=8, batch_dim=2, batch_encoder=True, backbone=backbone
        )
    )


def rates(network: StateTransition, **values: object) -> dict[str, float]:
    """Peak rate of each trainable parameter."""
    phase = PhaseSettings.parse({"name": "p", "steps": 10, **values})
    freeze(network, phase)
    return {name: group.rate for group in parameter_sets(network, phase, 1e-3) for name in group.names}


def test_phase_a_leaves_the_backbone_alone(network: StateTransition) -> None:
    found = rates(network, trains=["encoders", "outputs"], rates={"encoders": 3e-4, "outputs": 3e-4})
    roots = {name.partition(".")[0] for name in found}
    assert roots == {"pert_encoder", "basal_encoder", "batch_encoder", "project_out", "final_down_then_up"}
    assert set(found.values()) == {3e-4}


def test_phase_c_adds_the_top_three_blocks_and_the_final_norm(network: StateTransition) -> None:
    values = {"encoders": 2e-4, "outputs": 2e-4, "backbone": 1e-4}
    found = rates(network, trains=["encoders", "outputs", "top"], top_blocks=3, rates=values)
    blocks = {name.split(".")[2] for name in found if ".layers." in name}
    assert blocks == {"3", "4", "5"}
    assert found["transformer_backbone.norm.weight"] == 1e-4
    assert found["transformer_backbone.layers.3.mlp.up_proj.weight"] == 1e-4
    assert found["basal_encoder.0.weight"] == 2e-4


def test_phase_e_decays_from_layer_to_layer_down_to_the_floor(network: StateTransition) -> None:
    values = {"encoders": 1e-4, "outputs": 1e-4, "backbone": 3e-5, "layer_decay": 0.8, "floor": 1e-5}
    found = rates(network, trains="all", rates=values)
    blocks = [found[f"transformer_backbone.layers.{block}.self_attn.q_proj.weight"] for block in range(6)]
    assert blocks == pytest.approx([max(3e-5 * 0.8 ** (5 - block), 1e-5) for block in range(6)])
    assert blocks[0] == 1e-5
    assert blocks[5] == 3e-5


def test_only_matrices_decay(network: StateTransition) -> None:
    phase = PhaseSettings(name="p", steps=10)
    freeze(network, phase)
    decays = {name: group.weight_decay for group in parameter_sets(network, phase, 0.5) for name in group.names}
    assert set(decays) == {name for name, _ in network.named_parameters()}
    kept = {name for name, decay in decays.items() if decay == 0}
    expected = {
        n for n, p in network.named_parameters() if n.endswith("bias") or "norm" in n or n == "batch_encoder.weight"
    }
    assert kept == expected


def test_rates_follow_the_schedule_by_label(network: StateTransition) -> None:
    phase = PhaseSettings.parse({"name": "p", "steps": 100, "rates": {"encoders": 2e-4, "backbone": 1e-4}})
    freeze(network, phase)
    sets = parameter_sets(network, phase, 0.0)
    optimiser = build_optimiser(network, sets, OptimiserSettings(), torch.device("cpu"))
    set_rates(optimiser, phase, 99)
    found = rates_at(optimiser, phase, 99)
    assert [group["lr"] for group in optimiser.param_groups] == [
        found[group["label"]] for group in optimiser.param_groups
    ]
    assert found["encoders"] == pytest.approx(2e-5)
    assert found["block_05"] == pytest.approx(1e-5)
    assert set(found) == {"encoders", "outputs", "final_norm", *(f"block_{block:02d}" for block in range(6))}


def test_a_phase_that_trains_nothing_is_refused(network: StateTransition) -> None:
    phase = PhaseSettings(name="p", steps=10, trains=("middle",), top_blocks=6)
    freeze(network, phase)
    with pytest.raises(ConfigError, match="trains middle, but the network has no parameter there"):
        parameter_sets(network, phase, 0.0)
