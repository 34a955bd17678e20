"""Several checkpoints as one: cells that carry the mean of their effects, from the same control cells."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from steval.errors import ConfigError
from steval.predictor.cells.decoding import carried_blocks
from steval.predictor.cells.predicted import PredictedBlock, PredictionFacts
from steval.predictor.controls import ControlPool
from steval.predictor.engine import Predictor
from steval.predictor.plan import PredictionPlan
from steval.predictor.requests import PredictionRequest
from steval.predictor.sets import PlannedItem

ALIKE = ("output_genes", "input_genes", "scale", "target_sum", "control")
"""What the manifests of an ensemble have in common."""
READ_ALIKE = ("input_key", "input_dim")
"""What their networks have in common: all start from the same cells, as the first one reads them."""


class Ensemble:
    """Checkpoints whose effects are averaged; each decodes as it was calibrated, the first one's cells carry the mean.

    Offers what `Predictor` does. Raises `ConfigError` with every way in which the members do not fit together.
    """

    def __init__(self, members: Sequence[Predictor]):
        self.members = tuple(members)
        first = self.members[0]
        problems = [
            f"{member.path} and {first.path} differ in {name.replace('_', ' ')}"
            for member in self.members[1:]
            for name in (*ALIKE, *READ_ALIKE)
            if _fact(member, name) != _fact(first, name)
        ]
        digests = [member.digest for member in self.members]
        problems += [
            f"{member.path} is given twice" for row, member in enumerate(self.members) if member.digest in digests[:row]
        ]
        if problems:
            raise ConfigError("these checkpoints cannot predict together", problems)

    def plan(self, request: PredictionRequest, pool: ControlPool) -> PredictionPlan:
        """The first member's plan; all members must carry effects."""
        plan = self.members[0].plan(request, pool)
        problems = [
            f"{member.path} is decoded as the network puts its cells out"
            for member in self.members
            if member.decoder.chosen(request.decoding).settings.kind != "carried"
        ]
        if problems:
            raise ConfigError(
                "effects of several checkpoints are averaged where cells carry effects; run steval calibrate on them, or ask for "
                "--decoding carried",
                problems,
            )
        return plan

    def blocks(self, plan: PredictionPlan, *, sparse: bool = False) -> Iterator[PredictedBlock]:
        """The cells of a plan; see `Predictor.blocks`."""
        plans = [member.plan(plan.request, plan.pool) for member in self.members]

        def effects(items: Sequence[PlannedItem]) -> list[np.ndarray]:
            told = [
                member.effects(own, [own.items[item.position] for item in items])
                for member, own in zip(self.members, plans, strict=True)
            ]
            return [np.mean(one, axis=0) for one in zip(*told, strict=True)]

        first = self.members[0].decoder.chosen(plan.request.decoding)
        return carried_blocks(plan, first.settings, effects, sparse=sparse)

    def expected_errors(self, plan: PredictionPlan) -> list[dict[str, Any]] | None:
        """Means of what the members expect; None unless all of them say it."""
        each = [member.expected_errors(member.plan(plan.request, plan.pool)) for member in self.members]
        told = [one for one in each if one is not None]
        if len(told) < len(each):
            return None
        return [
            {**same[0], **{key: float(np.mean([one[key] for one in same])) for key in ("mae", "low", "high")}}
            for same in zip(*told, strict=True)
        ]

    def facts_of(self, plan: PredictionPlan, made_by: str = "steval predict") -> PredictionFacts:
        """The first member's, with path, digest and decoding of every member, and what they expect."""
        each = [member.facts(plan.request, made_by) for member in self.members]
        members = [
            {"checkpoint": one.checkpoint, "digest": one.checkpoint_digest, "decoding": one.engine["decoding"]}
            for one in each
        ]
        return PredictionFacts(
            made_by,
            each[0].checkpoint,
            each[0].checkpoint_digest,
            {**each[0].engine, "ensemble": members},
            self.expected_errors(plan),
        )


def _fact(member: Predictor, name: str) -> Any:
    manifest = member.manifest
    if name in ALIKE:
        return getattr(manifest, name)
    by_name = name == "input_key" and manifest.model.input_is_genes  # genes are found by name, whatever the key
    return None if by_name else getattr(manifest.model, name)
