"""LoRA adapters of an arc-state checkpoint: peft's names in its state dict, `lora` in its hyper-parameters, nothing taken on trust.

Observed in arc-state 0.11.1 with peft: the backbone's parameters are called `transformer_backbone.base_model.model.…`; an adapted
map's own are under `base_layer`, beside `lora_A.default.weight` `[r, in]` and `lora_B.default.weight` `[out, r]`; the scale is
`alpha / r`. Biases that were trained are in their usual place.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steval.errors import CheckpointError
from steval.model.lora import LoraPair
from steval.model.lora_settings import can_be_adapted, is_transposed

_PREFIX = "transformer_backbone.base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.(?P<adapter>[^.]+)\.weight")


@dataclass(frozen=True)
class ArcAdapters:
    """Adapters by the name of the weight beside which they are, all with one `rank` and `scale = alpha / rank`."""

    pairs: Mapping[str, LoraPair]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / self.rank

    def as_dict(self) -> dict[str, Any]:
        """What `steval inspect` says of them."""
        return {"rank": self.rank, "alpha": self.alpha, "matrices": len(self.pairs)}


def has_adapters(hyper: Mapping[str, Any], stored: Mapping[str, Tensor]) -> bool:
    """Whether the file says that it has adapters, or holds tensors of any."""
    lora = hyper.get("lora")
    enabled = isinstance(lora, Mapping) and bool(lora.get("enable"))
    return enabled or any(".base_model." in name or "lora_" in name for name in stored)


def take_adapters(
    hyper: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], ArcAdapters | None]:
    """The state dict under the names of a network without adapters, and the adapters; None where there are none.

    Raises `CheckpointError` with every problem: other forms of adapters, halves, wrong shapes, values that are not finite, ranks
    or a scale that the hyper-parameters do not give.
    """
    if not has_adapters(hyper, stored):
        return dict(stored), None
    plain: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    for name, tensor in stored.items():
        own = f"transformer_backbone.{name.removeprefix(_PREFIX)}" if name.startswith(_PREFIX) else name
        found = _MATRIX.fullmatch(own)
        if found and found["adapter"] == "default":
            halves.setdefault(f"{found['module']}.weight", {})[found["which"]] = tensor
        elif found or "lora_" in own:
            problems.append(
                f"{name}: {'an adapter beside the one called default' if found else 'another form than LoRA'}"
            )
        else:
            plain[own.replace(".base_layer.", ".")] = tensor
    rank, alpha, wrong = _rank_and_alpha(hyper.get("lora"))
    problems += wrong
    if not halves:
        problems.append("the hyper-parameters say that LoRA is on, and no adapter is in the file")
    pairs = {}
    for weight, parts in halves.items():
        wrong = _problems_of(weight, parts, plain.get(weight), rank)
        problems += wrong
        if not wrong:
            pairs[weight] = LoraPair(parts["A"].to(torch.float32), parts["B"].to(torch.float32))
    if problems:
        shown = problems[:20] + ([f"… and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise CheckpointError("the checkpoint's LoRA adapters cannot be read", shown)
    return plain, ArcAdapters(pairs, rank, alpha)


def _rank_and_alpha(lora: Any) -> tuple[int, float, list[str]]:
    values: Mapping[str, Any] = lora if isinstance(lora, Mapping) else {}
    rank: Any = values.get("r")
    alpha: Any = values.get("alpha")
    problems = []
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(f"lora.r of the hyper-parameters must be a whole number from 1, got {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or alpha <= 0:
        problems.append(f"lora.alpha of the hyper-parameters must be a number above 0, got {alpha!r}")
    # both change the scale, and arc-state passes neither on
    problems += [
        f"lora.{key} is on, which steval does not compute" for key in ("use_rslora", "use_dora") if values.get(key)
    ]
    return (0, 0.0, problems) if problems else (int(rank), float(alpha), [])


def _problems_of(weight: str, parts: Mapping[str, Tensor], beside: Tensor | None, rank: int) -> list[str]:
    """What is wrong with one adapter."""
    if not can_be_adapted(weight) or beside is None or beside.dim() != 2:
        return [f"an adapter beside {weight}, which is no matrix of the network"]
    if parts.keys() != {"A", "B"}:
        return [f"{weight}: lora_{'A' if 'B' in parts else 'B'} is missing"]
    outputs, inputs = beside.shape[::-1] if is_transposed(weight) else beside.shape
    expected = {"A": (rank, inputs), "B": (outputs, rank)}
    problems = [
        f"{weight}: lora_{which} has shape {list(parts[which].shape)}, rank {rank} and its matrix ask for {list(shape)}"
        for which, shape in expected.items()
        if rank and tuple(parts[which].shape) != shape
    ]
    problems += [
        f"{weight}: lora_{which} holds {'no floating point numbers' if not floating else 'values that are not finite'}"
        for which, tensor in parts.items()
        for floating in (tensor.is_floating_point(),)
        if not floating or not bool(torch.isfinite(tensor).all())
    ]
    return problems
