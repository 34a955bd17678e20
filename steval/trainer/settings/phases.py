"""A phase of fine-tuning as settings: what trains, at which rates, for how long; torch-free (docs/finetuning.md, Recipes)."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from steval.limits import Count, Tally
from steval.model.groups import AUXILIARY_PREFIX, PARAMETER_GROUPS, ParameterGroup, block_index, parameter_group
from steval.model.lora_settings import LoraSettings, is_adapter
from steval.settings import Settings

Schedule = Literal["cosine", "one-cycle", "constant"]
BACKBONE_GROUPS: tuple[ParameterGroup, ...] = ("top", "middle", "lower")


def _every_group(value: Any) -> Any:
    return list(PARAMETER_GROUPS) if value == "all" or value == ["all"] else value


class RateSettings(Settings):
    """Peak learning rates of one phase."""

    encoders: PositiveFloat = 3e-4
    """pert_encoder, basal_encoder, batch_encoder and batch token."""
    outputs: PositiveFloat = 3e-4
    """project_out, final_down_then_up, gene_decoder and the other heads."""
    backbone: PositiveFloat = 1e-4
    """The last block and the final norm; block l of L has `backbone · layer_decay^(L-1-l)`."""
    adapters: PositiveFloat = 2e-4
    """The matrices of LoRA adapters (`lora`)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor from one backbone block to the one below it; 1: all alike."""
    floor: NonNegativeFloat = 0.0
    """No block's peak rate falls below this."""

    @model_validator(mode="after")
    def _floor_below_top(self) -> "RateSettings":
        if self.floor > self.backbone:
            raise ValueError(f"floor ({self.floor:g}) must not exceed backbone ({self.backbone:g})")
        return self

    def of(self, name: str, group: ParameterGroup, num_layers: int) -> float:
        """Peak rate of the parameter `name`, which belongs to `group`, in a backbone of `num_layers` blocks."""
        if is_adapter(name):
            return self.adapters
        if group == "encoders":
            return self.encoders
        if group == "outputs":
            return self.outputs
        block = block_index(name)
        if block is None:
            return self.backbone
        return max(self.backbone * self.layer_decay ** (num_layers - 1 - block), self.floor)


class PhaseSettings(Settings):
    """One phase: a fit of its own with a fresh optimiser and schedule."""

    name: str = Field(min_length=1, pattern=r"^[\w.+-]+$")
    """Shown in tables, logs and the checkpoint's training record."""
    trains: Annotated[tuple[ParameterGroup, ...], BeforeValidator(_every_group)] = PARAMETER_GROUPS
    """Parameter groups that train: encoders, outputs, top, middle, lower; or `all`. The others do not change by a bit. With `lora`
    it may be empty: adapters alone."""
    lora: LoraSettings | None = None
    """Adapters of low rank beside frozen matrices, which train in this phase and are added to them at its end."""
    top_blocks: Tally = 3
    """How many of the last backbone blocks the group `top` holds."""
    steps: Count
    """Optimiser steps."""
    rates: RateSettings = RateSettings()
    """Peak learning rates by group."""
    schedule: Schedule = "cosine"
    """After the warm-up: `cosine` down to `final_fraction`, `constant`, or `one-cycle` (which has its own warm-up)."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly; not used by `one-cycle`."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where `cosine` ends, as a share of the peak."""
    start: Literal["best", "last"] = "best"
    """Which weights of the phase before this phase starts from."""
    decoder_weight: NonNegativeFloat | None = None
    """Weight of the gene loss beside the embedding loss in this phase; none: `loss.decoder_weight`."""
    distil: NonNegativeFloat | None = None
    """Weight of `distil` in this phase; none: `loss.distil`."""
    contrast: NonNegativeFloat | None = None
    """Weight of `contrast` in this phase; none: `loss.contrast`."""

    @model_validator(mode="after")
    def _trains_something(self) -> "PhaseSettings":
        if not self.trains and self.lora is None:
            raise ValueError(f"phase {self.name!r} trains nothing: name at least one of {', '.join(PARAMETER_GROUPS)}")
        if self.lora is not None:
            beside = {"attention": BACKBONE_GROUPS, "mlp": BACKBONE_GROUPS, "encoders": ("encoders",)}
            both = {group for target in self.lora.targets for group in beside[target]} & set(self.trains)
            if both:
                raise ValueError(
                    f"phase {self.name!r} trains {', '.join(sorted(both))} whole and has lora adapters beside the same matrices "
                    f"(targets {', '.join(self.lora.targets)}); leave one of them out"
                )
        return self

    @property
    def frozen_blocks(self) -> tuple[ParameterGroup, ...]:
        """Groups of the backbone that do not train."""
        return tuple(group for group in BACKBONE_GROUPS if group not in self.trains)

    def trains_parameter(self, name: str, num_layers: int) -> bool:
        """Whether the parameter `name` trains in this phase; heads on an auxiliary embedding always do."""
        if name.startswith(AUXILIARY_PREFIX):
            return True
        if is_adapter(name):
            return self.lora is not None
        return parameter_group(name, num_layers, self.top_blocks) in self.trains
