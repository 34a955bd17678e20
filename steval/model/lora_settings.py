"""LoRA (arXiv:2106.09685) as settings: which linear maps get an adapter of low rank, and how large it is; torch-free."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from steval.limits import Width
from steval.settings import Settings

LoraTarget = Literal["attention", "mlp", "encoders"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)
_WHERE: dict[LoraTarget, re.Pattern[str]] = {
    "attention": re.compile(r"transformer_backbone\.(layers\.\d+\.self_attn|h\.\d+\.attn)\.\w+\.weight"),
    "mlp": re.compile(r"transformer_backbone\.(layers|h)\.\d+\.mlp\.\w+\.weight"),
    "encoders": re.compile(r"(pert_encoder|basal_encoder)(\.\d+)?\.weight"),
}
"""Weights that are matrices of a linear map, by target."""
_TRANSPOSED = re.compile(r"transformer_backbone\.h\.\d+\.(attn|mlp)\.\w+\.weight")


def _every_target(value: Any) -> Any:
    return list(LORA_TARGETS) if value == "all" or value == ["all"] else [value] if isinstance(value, str) else value


class LoraSettings(Settings):
    """Adapters `W + alpha/rank · B A` beside frozen matrices `W`."""

    rank: Width = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 16.0
    """The adapters' part is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' inputs, in training."""
    targets: Annotated[tuple[LoraTarget, ...], BeforeValidator(_every_target), Field(min_length=1)] = ("attention",)
    """Which linear maps: attention, mlp (of the backbone), encoders (of perturbations and control cells); or `all`."""

    @model_validator(mode="after")
    def _each_once(self) -> "LoraSettings":
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets names one twice: {', '.join(self.targets)}")
        return self

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / self.rank

    def adapts(self, weight: str) -> bool:
        """Whether the matrix called `weight` gets an adapter."""
        return any(_WHERE[target].fullmatch(weight) for target in self.targets)


A_SUFFIX, B_SUFFIX = ".lora_a", ".lora_b"
"""Names of an adapter's matrices: that of the module, and one of these."""


def is_adapter(name: str) -> bool:
    """Whether a parameter is a matrix of an adapter."""
    return name.endswith((A_SUFFIX, B_SUFFIX))


def can_be_adapted(weight: str) -> bool:
    """Whether `weight` is a matrix that any target means."""
    return any(where.fullmatch(weight) for where in _WHERE.values())


def is_transposed(weight: str) -> bool:
    """Whether the matrix is kept as inputs × outputs (GPT-2's), not outputs × inputs."""
    return bool(_TRANSPOSED.fullmatch(weight))
