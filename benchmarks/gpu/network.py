"""arc-state 0.11.1's `state_sm` network in numbers: 137 million parameters at 18,080 genes (159 with the unused vocabulary)."""

from typing import Any

SET_SIZE = 64


def network_settings(small: bool) -> dict[str, Any]:
    """`network` of a fine-tuning configuration."""
    hidden = 32 if small else 672
    return {
        "hidden_dim": hidden, "num_layers": 4, "num_heads": 8, "intermediate_dim": 4 * hidden, "num_encoder_layers": 4,
        "num_decoder_layers": 4, "dropout": 0.1, "head": "down-then-up", "use_basal_projection": False,
    }  # fmt: skip


def model_settings(small: bool, num_genes: int, pert_dim: int) -> dict[str, Any]:
    """The same as `ModelConfig` takes it."""
    hidden = 32 if small else 672
    backbone = {"kind": "llama", "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_layers": 4}
    backbone |= {"num_heads": 8, "num_key_value_heads": 8, "head_dim": hidden // 8}
    return {
        "input_dim": num_genes, "output_dim": num_genes, "pert_dim": pert_dim, "hidden_dim": hidden, "num_encoder_layers": 4,
        "num_decoder_layers": 4, "use_basal_projection": False, "backbone": backbone, "cell_set_size": SET_SIZE,
    }  # fmt: skip
