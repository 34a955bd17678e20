"""The golden models as steval's network, and random small configurations; the README of the data says what they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from steval.model.config import Attention, ModelConfig
from steval.model.network import StateTransition

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FORWARD_NAMES = sorted(path.stem for path in (GOLDEN / "forward").glob("*.npz"))
REGIMES: tuple[Attention, ...] = ("bidirectional", "causal", "causal-rope")
GOLDEN_REGIMES: dict[str, Attention] = {"llama_causal_emb_decoder": "causal-rope", "gpt2_hvg": "causal"}
"""Models without the key `bidirectional_attention`, with the regime that their recorded outputs have."""


def config_of(arguments: dict[str, Any], regime: Attention) -> ModelConfig:
    """Our configuration from the constructor arguments of a golden model."""
    inner = arguments["transformer_backbone_kwargs"]
    if arguments["transformer_backbone_key"] == "GPT2":
        backbone = {
            "kind": "gpt2",
            "hidden_size": inner["n_embd"],
            "intermediate_size": 4 * inner["n_embd"],
            "num_layers": inner["n_layer"],
            "num_heads": inner["n_head"],
        }
    else:
        backbone = {
            "hidden_size": inner["hidden_size"],
            "intermediate_size": inner["intermediate_size"],
            "num_layers": inner["num_hidden_layers"],
            "num_heads": inner["num_attention_heads"],
            "num_key_value_heads": inner["num_key_value_heads"],
            "head_dim": inner["head_dim"],
        }
    decoder = arguments.get("decoder_cfg")
    if decoder:
        decoder = {**decoder, "residual": decoder["residual_decoder"]}
        del decoder["residual_decoder"]
    return ModelConfig.parse(
        {
            **{key: arguments[key] for key in ("input_dim", "output_dim", "pert_dim", "hidden_dim", "output_space")},
            "batch_dim": arguments.get("batch_dim"),
            "input_key": arguments["embed_key"],
            "num_encoder_layers": arguments["n_encoder_layers"],
            "num_decoder_layers": arguments["n_decoder_layers"],
            "dropout": arguments["dropout"],
            "predict_residual": arguments["predict_residual"],
            "use_basal_projection": arguments.get("use_basal_projection", True),
            "backbone": {"kind": "llama", **backbone},
            "attention": regime,
            "mask_attn": arguments.get("mask_attn", False),
            "batch_encoder": arguments.get("batch_encoder", False),
            "batch_token": arguments.get("use_batch_token", False),
            "confidence_token": arguments.get("confidence_token", False),
            "gene_decoder": decoder,
            "cell_set_size": arguments["cell_set_len"],
        }
    )


def golden_model(name: str) -> tuple[StateTransition, dict[str, torch.Tensor]]:
    """A model of `golden/forward` in eval mode, and its recorded inputs and outputs."""
    arguments = json.loads((GOLDEN / "forward" / f"{name}.json").read_text())
    network = StateTransition(config_of(arguments, GOLDEN_REGIMES.get(name, "bidirectional"))).eval()
    network.load_state_dict(load_file(GOLDEN / "forward" / f"{name}.safetensors"))
    with np.load(GOLDEN / "forward" / f"{name}.npz") as arrays:
        return network, {key: torch.from_numpy(arrays[key]) for key in arrays}


def keyless_model(regime: Attention) -> tuple[StateTransition, dict[str, torch.Tensor]]:
    """The checkpoint without the key, under `regime`, and what three installations compute from it."""
    arguments = json.loads((GOLDEN / "forward" / "llama_bidir_all_x.json").read_text())
    network = StateTransition(config_of(arguments, "bidirectional"), attention=regime).eval()
    network.load_state_dict(load_file(GOLDEN / "regimes" / "keyless.safetensors"))
    with np.load(GOLDEN / "regimes" / "keyless.npz") as arrays:
        return network, {key: torch.from_numpy(arrays[key]) for key in arrays}
