"""Decoding: how a checkpoint's prediction becomes cells. A field of the checkpoint and of every output's record.

`network`: the cells that the network puts out. `carried`: an effect for each perturbation, carried by measured control cells:

    effect = scale × (weight × network's effect + (1 − weight) × simple model's effect)
    cells = carry(drawn control cells, mean of all control cells of the context + effect)

The network's effect is the mean of `effect_cells` predicted cells less the mean of the same controls, less the same for the
control label (what it changes although nothing was done). The mean is that of all control cells, not of the drawn ones:
otherwise the luck of the draw is added to every gene (MAE 0.075 for 0.067 on a screen of 4,707 genes, 40 cells each).

Where the control cells have a common total (expm1), as cells that were normalised have, an effect leaves it as it is on average:
counts that go up in some genes come from all others. One common change of the log counts, times each gene's sensitivity, is
taken off, where it is at most `MOST_COMMON`, until the totals are those of the same cells without an effect.
"""

from typing import Annotated, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.carry import Carried, carry, sensitivity, totals_of_cells
from steval.settings import Settings

SAME_TOTAL = 0.01
"""Relative difference up to which totals are the same."""
MOST_CORRECTIONS = 3
"""Times that an effect is corrected at most until the totals are those of cells that carry none."""
MOST_COMMON = 0.6
"""Change of the log counts that all genes take on at most: a larger excess is that of a few genes, told wrongly, and is left."""
_TINY = 1e-12
Share = Annotated[float, Field(ge=0, le=1)]
DecodingChoice = Literal["checkpoint", "network", "carried"]
"""What a request may ask for: the checkpoint's own decoding, or one kind of it."""


class DecodingSettings(Settings):
    """See the module."""

    kind: Literal["network", "carried"] = "network"
    network_weight: Share = 1.0
    """Share of the network's effect; the rest is the simple model's."""
    anchor: AnchorSettings | None = None
    """The simple model; none: the network alone."""
    subtract_null: bool = True
    """Whether what the network predicts for the control label is taken from its effects."""
    effect_scale: PositiveFloat = 1.0
    zeros_follow: Share = 1.0
    """How far the share of expressing cells follows the mean (see `carry`)."""
    effect_cells: PositiveInt = 256
    """Cells that the network predicts of each perturbation to know its effect."""

    @model_validator(mode="after")
    def _something_predicts(self) -> "DecodingSettings":
        if self.anchor is None and self.network_weight != 1:
            raise ValueError("without an anchor there is the network's effect alone: network_weight must be 1")
        if self.kind == "network" and (self.anchor is not None or self.network_weight != 1):
            raise ValueError("kind network gives the network's own cells; anchor and network_weight belong to carried")
        return self

    @property
    def asks_network(self) -> bool:
        """Whether the network has any part in the cells."""
        return self.kind == "network" or self.network_weight > 0

    @property
    def asks_anchor(self) -> bool:
        """Whether training effects have any part in them."""
        return self.anchor is not None and self.network_weight < 1

    def chosen(self, choice: DecodingChoice) -> "DecodingSettings":
        """These settings, or where another kind is asked for that kind's defaults (`carried`: the network's effect alone)."""
        return self if choice in ("checkpoint", self.kind) else DecodingSettings(kind=choice)

    def combined(self, network: np.ndarray | None, simple: np.ndarray | None) -> np.ndarray:
        """The effect `[..., G]` that is carried; what has no weight may be None."""
        weight = self.network_weight
        parts = []
        if self.asks_network:
            assert network is not None
            parts.append(weight * network)
        if self.asks_anchor:
            assert simple is not None
            parts.append((1 - weight) * simple)
        return np.asarray(self.effect_scale * sum(parts))

    def carried(
        self,
        cells: sp.csr_matrix,
        control_mean: np.ndarray,
        effect: np.ndarray,
        generator: np.random.Generator,
        target_sum: float | None,
    ) -> Carried:
        """`cells`, drawn control cells of a context, with its mean `control_mean [G]` plus `effect [G]`."""
        seed = int(generator.integers(2**63))

        def carried(mean: np.ndarray) -> Carried:
            drawn = np.random.default_rng(seed)
            return carry(cells, mean, drawn, target_sum=target_sum, zeros_follow=self.zeros_follow)

        without = np.asarray(control_mean, dtype=np.float64)
        wanted = without + effect
        found = carried(wanted)
        if not _have_common_total(cells) or not np.any(effect):
            return found
        total = totals_of_cells(carried(without).cells).mean()
        for _ in range(MOST_CORRECTIONS):
            excess = float(np.log(max(totals_of_cells(found.cells).mean(), _TINY) / max(total, _TINY)))
            if abs(excess) < SAME_TOTAL or abs(excess) > MOST_COMMON:
                break
            wanted = wanted - excess * sensitivity(wanted)
            found = carried(wanted)
        return found


def _have_common_total(cells: sp.csr_matrix) -> bool:
    totals = totals_of_cells(cells)
    middle = np.median(totals)
    return bool(middle > 0 and (np.abs(totals - middle) < SAME_TOTAL * middle).all())
