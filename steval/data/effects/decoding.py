"""Decoding: how a checkpoint's prediction becomes cells. A field of the checkpoint and of every output's record.

`network`: the cells that the network puts out. `carried`: an effect for each perturbation, carried by measured control cells:

    effect = scale × (weight × network's effect + (1 − weight) × simple model's effect)
    cells = carry(drawn control cells, mean of all control cells of the context + effect)

The network's effect is the mean of `effect_cells` predicted cells less the mean of the same controls, less the same for the
control label (what it changes although nothing was done). The mean is that of all control cells, not of the drawn ones:
otherwise the luck of the draw is added to every gene (MAE 0.075 for 0.067 on a screen of 4,707 genes, 40 cells each).

Means that would be negative become 0 (`not_negative`). Where the control cells have a common total (expm1), as cells that were
normalised have, an effect leaves it as it is on average: counts that go up in some genes come from all others. What is more
than a change of `MOST_COMMON` for all others, and no common gain, comes from a few genes whose effect was told wrongly, moved
from cells that have next to none of the gene, and is taken off the highest ones. One common change of the log counts, times
each gene's sensitivity, then brings the totals to those of the same cells without an effect.
"""

from typing import Annotated, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field, PositiveFloat, model_validator

from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.carry import Carried, Carrier, sensitivity, totals_of_cells
from steval.limits import Width
from steval.settings import Settings

SAME_TOTAL = 0.01
"""Relative difference up to which totals are the same."""
MOST_CORRECTIONS = 4
"""Times that an effect is corrected at most in each of the two ways until the totals are those of cells that carry none."""
MOST_COMMON = 0.1
"""Decrease of the log counts that all genes should take on at most for what some gain."""
GENES_ALIKE = 256
"""Genes of neighbouring expression among which sums are kept where some would be negative."""
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
    effect_cells: Width = 256
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
        drawn = np.random.default_rng(int(generator.integers(2**63)))
        carrier = Carrier(cells, drawn, target_sum=target_sum, zeros_follow=self.zeros_follow)
        without = np.asarray(control_mean, dtype=np.float64)
        wanted = not_negative(without, without + effect)
        found = carrier.tried(wanted)
        if not _have_common_total(cells) or not np.any(effect):
            return found.carried()
        total = carrier.tried(without).mean_total
        highest = None
        for step in range(2 * MOST_CORRECTIONS):
            excess = float(np.log(max(found.mean_total, _TINY) / max(total, _TINY)))
            if abs(excess) < SAME_TOTAL:
                break
            if excess > MOST_COMMON and highest is None:
                wanted = wanted - max(middle_gain(without, wanted), 0.0) * sensitivity(wanted)
                highest = wanted.max()
            elif excess > MOST_COMMON and step < MOST_CORRECTIONS:  # the highest genes hold it
                highest += np.log(np.expm1(MOST_COMMON) / np.expm1(excess))
                wanted = np.minimum(wanted, np.maximum(highest, without))
            else:
                wanted = wanted - excess * sensitivity(wanted)
            found = carrier.tried(wanted)
        return found.carried()


def not_negative(controls: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The nearest means `[G]` to `wanted` of which none is below 0; `controls [G]` are the means of the control cells.

    What that adds is taken off the other genes of about the same expression, each by the same amount (the projection onto
    means that are not negative and keep their sum): otherwise the noise of effects, of which 0 cuts the lower half off, would
    raise all weak genes.
    """
    result = wanted.copy()
    if (result >= 0).all():
        return result
    order = np.argsort(controls, kind="stable")
    for alike in np.array_split(order, max(len(order) // GENES_ALIKE, 1)):
        result[alike] = _with_their_sum(result[alike])
    return result


def middle_gain(controls: np.ndarray, wanted: np.ndarray) -> float:
    """The change of the log counts that half of the counts of `controls [G]` gain at least."""
    expressed = np.flatnonzero(controls > 0)
    gains = (wanted[expressed] - controls[expressed]) / sensitivity(controls[expressed])
    order = np.argsort(gains)
    counts = np.cumsum(np.expm1(controls[expressed])[order])
    return float(gains[order][np.searchsorted(counts, counts[-1] / 2)])


def _with_their_sum(values: np.ndarray) -> np.ndarray:
    """The nearest values with the same sum (0, where it is negative) of which none is below 0."""
    if (values >= 0).all():
        return values
    total = values.sum()
    if total <= 0:
        return np.zeros_like(values)
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    last = np.flatnonzero(falling > excess)[-1]
    return np.maximum(values - excess[last], 0.0)


def _have_common_total(cells: sp.csr_matrix) -> bool:
    totals = totals_of_cells(cells)
    middle = np.median(totals)
    return bool(middle > 0 and (np.abs(totals - middle) < SAME_TOTAL * middle).all())
