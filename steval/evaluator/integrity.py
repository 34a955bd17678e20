"""Integrity checks: is the score a gain in prediction, or the work of something broken or gamed?

Each check gives a measurement, the limit it was held against, a status (ok, warn, fail, skipped) and one plain sentence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from steval.evaluator.evaluate import Evaluation
from steval.evaluator.members import Overall
from steval.evaluator.pair import Pair
from steval.evaluator.training import TrainingCells

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    measurement: float | None
    limit: float | None
    sentence: str


@dataclass(frozen=True)
class Scored:
    """What the checks look at."""

    pair: Pair
    evaluation: Evaluation
    members: pl.DataFrame
    """As `members.member_table` gives it."""
    overall: Overall | None
    """None without a baseline."""
    training: TrainingCells | None
    rescore: Callable[[Pair], Overall] | None
    """Scores a changed prediction; given under the full level only."""
    seed: int = 0


def check_integrity(scored: Scored) -> list[Finding]:
    """All checks, in the order of the table."""
    return []
