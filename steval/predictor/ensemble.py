"""Several checkpoints as one: cells that carry the mean of their effects, from the same control cells."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from steval.errors import ConfigError
from steval.predictor.cells.decoding import carried_blocks
from steval.predictor.cells.predicted import PredictedBlock, PredictionFacts
from steval.predictor.controls import ControlPool
from steval.predictor.engine import Predictor
from steval.predictor.members import Member, misfits, not_carried
from steval.predictor.plan import PredictionPlan
from steval.predictor.requests import PredictionRequest
from steval.predictor.sets import PlannedItem


class Ensemble:
    """Checkpoints whose effects are averaged; each decodes as it was calibrated, the first one's cells carry the mean.

    Offers what `Predictor` does. Raises `ConfigError` with every way in which the members do not fit together.
    """

    def __init__(self, members: Sequence[Predictor]):
        self.members = tuple(members)
        self.manifest = self.members[0].manifest
        problems = misfits([Member(str(one.path), one.digest, one.manifest) for one in self.members])
        if problems:
            raise ConfigError("these checkpoints cannot predict together", problems)

    def plan(self, request: PredictionRequest, pool: ControlPool) -> PredictionPlan:
        """The first member's plan; all members must carry effects."""
        plan = self.members[0].plan(request, pool)
        problems = not_carried([(str(one.path), one.decoder.settings) for one in self.members], request.decoding)
        if problems:
            mend = "run steval calibrate on them, or ask for --decoding carried"
            if request.decoding == "network":
                mend = "ask for --decoding carried, or for one checkpoint at a time"
            raise ConfigError(
                f"effects of several checkpoints are averaged where cells carry effects; {mend}", problems
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
