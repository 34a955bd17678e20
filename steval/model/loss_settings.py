"""Which loss compares a predicted set with a measured one; torch-free, so that a configuration needs no torch."""

from typing import Literal

from pydantic import Field, model_validator

from steval.settings import Settings

LossKind = Literal["energy", "sinkhorn", "mse", "se"]
AuxiliaryKind = Literal["distil", "contrast"]
AUXILIARY_KINDS: tuple[AuxiliaryKind, ...] = ("distil", "contrast")
"""Losses on an auxiliary embedding (`steval.model.auxiliary`)."""


class LossSettings(Settings):
    """The loss of both heads."""

    kind: LossKind = "energy"
    """`energy`: energy distance of the two sets; `sinkhorn`: debiased entropic transport; `se`: a weighted sum of both;
    `mse`: mean squared difference cell by cell (the order of the cells then matters)."""
    blur: float = Field(default=0.05, gt=0)
    """Final blur scale of `sinkhorn`, in the units of the data; its temperature is blur²."""
    sinkhorn_weight: float = Field(default=0.01, ge=0)
    """Weight of `sinkhorn` in `se`."""
    energy_weight: float = Field(default=1.0, ge=0)
    """Weight of `energy` in `se`."""

    @model_validator(mode="after")
    def _some_weight(self) -> "LossSettings":
        if self.kind == "se" and not self.sinkhorn_weight and not self.energy_weight:
            raise ValueError("loss `se` needs sinkhorn_weight or energy_weight above 0, both are 0")
        return self
