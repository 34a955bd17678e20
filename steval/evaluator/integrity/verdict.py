"""What an integrity check found, and how a measurement becomes a status."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "warn", "fail", "skipped"]
"""`warn` and `fail` are flags; a `note` is worth knowing, but an honest prediction may well have it."""
FLAGS = ("fail", "warn")
REMARKS = (*FLAGS, "note")
"""What a reader should see first, in this order."""


@dataclass(frozen=True)
class Verdict:
    """What one check found."""

    status: Status
    measurement: float | None
    """What was measured; the sentence says in which unit."""
    limit: float | None
    """Beyond this the check does not pass."""
    sentence: str


def graded(value: float, warn: float, fail: float) -> Status:
    """ok below `warn`, fail from `fail` on (for measurements that are bad when high)."""
    if value >= fail:
        return "fail"
    return "warn" if value >= warn else "ok"


def skipped(why: str) -> Verdict:
    """A check that could not be made, and why."""
    return Verdict("skipped", None, None, why)
