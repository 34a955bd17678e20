"""Parameter groups of fine-tuning by name."""

import pytest

from steval.errors import ConfigError
from steval.model.groups import PARAMETER_GROUPS, block_index, is_unused, parameter_group
from support import golden_models


@pytest.mark.parametrize("name", golden_models.FORWARD_NAMES)
def test_every_parameter_has_a_group(name):
    network, _ = golden_models.golden_model(name)
    layers = network.config.backbone.num_layers
    groups = {parameter: parameter_group(parameter, layers, 1) for parameter, _ in network.named_parameters()}
    assert set(groups.values()) <= set(PARAMETER_GROUPS)
    assert {"encoders", "outputs", "top", "middle"} <= set(groups.values())


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("pert_encoder.0.weight", "encoders"),
        ("basal_encoder.weight", "encoders"),
        ("batch_encoder.weight", "encoders"),
        ("batch_token", "encoders"),
        ("project_out.9.bias", "outputs"),
        ("final_down_then_up.2.weight", "outputs"),
        ("gene_decoder.decoder.0.weight", "outputs"),
        ("transformer_backbone.norm.weight", "top"),
        ("transformer_backbone.ln_f.bias", "top"),
        ("transformer_backbone.layers.7.mlp.up_proj.weight", "top"),
        ("transformer_backbone.h.5.ln_1.weight", "top"),
        ("transformer_backbone.layers.4.mlp.up_proj.weight", "middle"),
        ("transformer_backbone.layers.2.mlp.up_proj.weight", "middle"),
        ("transformer_backbone.layers.1.mlp.up_proj.weight", "lower"),
        ("transformer_backbone.layers.0.mlp.up_proj.weight", "lower"),
    ],
)
def test_eight_blocks_with_three_on_top(name, group):
    assert parameter_group(name, num_layers=8, top_blocks=3) == group


def test_a_shallow_backbone_is_all_top():
    names = [f"transformer_backbone.layers.{block}.mlp.up_proj.weight" for block in range(2)]
    assert {parameter_group(name, num_layers=2, top_blocks=3) for name in names} == {"top"}
    assert [block_index(name) for name in [*names, "project_out.0.bias"]] == [0, 1, None]


@pytest.mark.parametrize(
    "name", ["transformer_backbone.layers.9.mlp.w", "transformer_backbone.embed_tokens.weight", "x"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="no parameter of an ST network"):
        parameter_group(name, num_layers=4, top_blocks=2)


def test_unused_names():
    network, _ = golden_models.golden_model("llama_bidir_all_x")
    config = network.config
    assert is_unused("transformer_backbone.embed_tokens.weight", config)
    assert is_unused("transformer_backbone.wpe.weight", config)
    assert not any(is_unused(name, config) for name, _ in network.named_parameters())
    idle = config.parse({**config.as_dict(), "predict_residual": False})
    assert is_unused("final_down_then_up.0.weight", idle)
