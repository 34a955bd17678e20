"""Which part of the network a parameter belongs to, by its name; torch-free (docs/architecture.md, The network)."""

import re
from typing import Literal

from steval.errors import ConfigError
from steval.model.config import ModelConfig
from steval.wording import counted

ParameterGroup = Literal["encoders", "outputs", "top", "middle", "lower"]
PARAMETER_GROUPS: tuple[ParameterGroup, ...] = ("encoders", "outputs", "top", "middle", "lower")

_ROOTS: dict[str, ParameterGroup] = {
    "pert_encoder": "encoders",
    "basal_encoder": "encoders",
    "batch_encoder": "encoders",
    "batch_token": "encoders",
    "batch_classifier": "outputs",
    "confidence_token": "outputs",
    "project_out": "outputs",
    "final_down_then_up": "outputs",
    "gene_decoder": "outputs",
    "auxiliary": "outputs",
}
AUXILIARY_PREFIX = "auxiliary."
"""Begins the names of the heads on an auxiliary embedding, which no checkpoint has."""
_BACKBONE = "transformer_backbone"
_BLOCK = re.compile(rf"^{_BACKBONE}\.(?:layers|h)\.(\d+)\.")
_FINAL_NORM = re.compile(rf"^{_BACKBONE}\.(?:norm|ln_f)\.")
_UNUSED_TABLE = re.compile(rf"^{_BACKBONE}\.(?:embed_tokens|wte|wpe)\.")


def block_index(name: str) -> int | None:
    """The backbone block (from 0, nearest the input) that parameter `name` belongs to; None outside the blocks."""
    found = _BLOCK.match(name)
    return int(found.group(1)) if found else None


def parameter_group(name: str, num_layers: int, top_blocks: int) -> ParameterGroup:
    """The group of the parameter called `name` in a backbone of `num_layers` blocks.

    `top` is the last `top_blocks` blocks and the final norm; of the blocks below, the upper half (rounded up) is
    `middle` and the rest `lower`. Raises `ConfigError` for a name that no ST network has.
    """
    root = name.partition(".")[0]
    if root in _ROOTS:
        return _ROOTS[root]
    if _FINAL_NORM.match(name):
        return "top"
    block = block_index(name)
    if block is None or block >= num_layers:
        raise ConfigError(
            f"{name!r} is no parameter of an ST network with {counted(num_layers, 'block')}; "
            f"allowed are {', '.join(_ROOTS)} and {_BACKBONE}.(layers|h).0..{num_layers - 1}, norm or ln_f"
        )
    below_top = max(num_layers - top_blocks, 0)
    if block >= below_top:
        return "top"
    return "middle" if block >= below_top // 2 else "lower"


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether arc-state stores a parameter of this name that no computation reads, so that ours does not have it:
    the backbone's vocabulary tables, a down-then-up that the configuration leaves idle, and GPT-2's position table, which
    upstream keeps at zero and adds (a file in which it is not zero is no ST network)."""
    if name.startswith("final_down_then_up."):
        return not config.has_bottleneck
    return bool(_UNUSED_TABLE.match(name))
