"""Our network as arc-state's constructor arguments (`hyper_parameters` of its checkpoints) and state dict.

The key map is the one of docs/checkpoints.md read the other way; what `arc_config` reads from shapes is written out here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steval.errors import CheckpointError
from steval.model.config import Attention, Gpt2Config, LlamaConfig, ModelConfig

BACKBONE = "transformer_backbone"
NUM_TABLE_ROWS = 8
"""Rows of the backbone's vocabulary table, which arc-state wants and no computation reads."""
_COMPUTED: dict[str, dict[Attention, bool | None]] = {
    "llama": {"bidirectional": True, "causal-rope": False},
    "gpt2": {"causal": False},
}
"""Regimes that arc-state 0.11.1 computes for a backbone, with the key `bidirectional_attention` that asks for them."""


def arc_arguments(config: ModelConfig, control: str, output_genes: tuple[str, ...] | None) -> dict[str, Any]:
    """Constructor arguments of arc-state 0.11.1, plain types alone. Raises `CheckpointError` as `require_expressible`."""
    require_expressible(config)
    num_genes = config.prediction_dim if config.output_is_genes or config.gene_decoder else config.output_dim
    decoder = config.gene_decoder
    arguments: dict[str, Any] = {
        "input_dim": config.input_dim,
        "hidden_dim": config.hidden_dim,
        "output_dim": config.output_dim,
        "pert_dim": config.pert_dim,
        "batch_dim": config.batch_dim,
        "gene_dim": num_genes,
        "hvg_dim": config.input_dim if config.input_key == "X_hvg" else 0,
        "embed_key": config.input_key,
        "output_space": config.output_space,
        "gene_names": None if output_genes is None else list(output_genes),
        "control_pert": control,
        "cell_set_len": config.cell_set_size,
        "n_encoder_layers": config.num_encoder_layers,
        "n_decoder_layers": config.num_decoder_layers,
        "activation": config.activation,
        "dropout": config.dropout,
        "predict_residual": config.predict_residual,
        "use_basal_projection": config.use_basal_projection,
        "mask_attn": config.mask_attn,
        "batch_encoder": config.batch_encoder,
        "use_batch_token": config.batch_token,
        "confidence_token": config.confidence_token,
        "basal_mapping_strategy": "batch" if config.batch_token else "random",
        "residual_decoder": decoder is not None and decoder.residual,
        "gene_decoder_bool": decoder is not None,
        "transformer_backbone_key": "GPT2" if config.backbone.kind == "gpt2" else "llama",
        "transformer_backbone_kwargs": _backbone_arguments(config),
        "softplus": True,
        "loss": "energy",
        "distributional_loss": "energy",
        "blur": 0.05,
        "lr": 1e-4,
    }
    if (
        decoder is not None
    ):  # upstream builds one from the key whatever its value, so that without one it must be absent
        arguments["decoder_cfg"] = {
            "latent_dim": decoder.latent_dim,
            "gene_dim": decoder.gene_dim,
            "hidden_dims": list(decoder.hidden_dims),
            "dropout": decoder.dropout,
            "residual_decoder": decoder.residual,
        }
    return arguments


def require_expressible(config: ModelConfig) -> None:
    """Raise `CheckpointError` naming each part of the network that arc-state 0.11.1 has no word for."""
    computed = _COMPUTED[config.backbone.kind]
    problems = []
    if config.attention not in computed:
        problems.append(
            f"attention {config.attention!r}: arc-state 0.11.1 computes a {config.backbone.kind} backbone "
            f"{' or '.join(computed)} (predict with --attention to see what that would change)"
        )
    if config.predict_residual and config.output_space == "all" and config.head == "plain":
        problems.append("head 'plain': arc-state always has the down-then-up head in output space 'all'")
    if problems:
        raise CheckpointError("the checkpoint has what an arc-state 0.11.1 model cannot express", problems)


def arc_state_dict(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights and the tensors that arc-state stores and never reads, which its strict loading asks for (zeros)."""
    state = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in weights.items()}
    hidden = config.hidden_dim
    if isinstance(config.backbone, Gpt2Config):
        state[f"{BACKBONE}.wte.weight"] = torch.zeros(NUM_TABLE_ROWS, hidden)
        state[f"{BACKBONE}.wpe.weight"] = torch.zeros(num_positions(config), hidden)
    else:
        state[f"{BACKBONE}.embed_tokens.weight"] = torch.zeros(NUM_TABLE_ROWS, hidden)
    if config.output_space == "all" and not config.has_bottleneck:
        width, narrow = config.output_dim, config.output_dim // 8
        state["final_down_then_up.0.weight"] = torch.zeros(narrow, width)
        state["final_down_then_up.0.bias"] = torch.zeros(narrow)
        state["final_down_then_up.2.weight"] = torch.zeros(width, narrow)
        state["final_down_then_up.2.bias"] = torch.zeros(width)
    return state


def num_positions(config: ModelConfig) -> int:
    """Tokens of a set: its cells and the tokens around them."""
    return config.cell_set_size + int(config.batch_token) + int(config.confidence_token)


def _backbone_arguments(config: ModelConfig) -> dict[str, Any]:
    backbone = config.backbone
    key = _COMPUTED[backbone.kind][config.attention]
    shared = {
        "max_position_embeddings": num_positions(config),
        "n_positions": num_positions(config),
        "hidden_size": backbone.hidden_size,
        "use_cache": False,
        "vocab_size": NUM_TABLE_ROWS,
        "bidirectional_attention": key,
    }
    if isinstance(backbone, Gpt2Config):
        return shared | {
            "n_embd": backbone.hidden_size,
            "n_inner": backbone.intermediate_size,
            "n_layer": backbone.num_layers,
            "n_head": backbone.num_heads,
            "layer_norm_epsilon": backbone.norm_eps,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    assert isinstance(backbone, LlamaConfig)
    return shared | {
        "intermediate_size": backbone.intermediate_size,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "num_key_value_heads": backbone.num_key_value_heads,
        "head_dim": backbone.head_dim,
        "rms_norm_eps": backbone.norm_eps,
        "rope_theta": backbone.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": backbone.rope_theta},
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
