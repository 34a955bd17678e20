"""What the holder of a key may do: roles, and how much in a time. The rules of a line of the key file.

    roles=predict,score requests=600/minute cells=1000000/day jobs=20/day bytes=20GB/day

What is not said is not limited; a line without roles has all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from steval.errors import ConfigError, nearest_names

PREDICT, SCORE, ADMIN = "predict", "score", "admin"
ROLES = (PREDICT, SCORE, ADMIN)
REQUESTS, CELLS, JOBS, BYTES = "requests", "cells", "jobs", "bytes"
KINDS = (REQUESTS, CELLS, JOBS, BYTES)
SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_RATE = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>[kKMGT]?)B?/(?P<time>[a-z]+)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Rate:
    """So many in so many seconds; all of them may come at once, then they come back evenly."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        name = next(name for name, seconds in SECONDS.items() if seconds == self.seconds)
        return f"{self.amount} a {name}"


@dataclass(frozen=True)
class Tenant:
    """The holder of a key."""

    name: str
    roles: frozenset[str] = frozenset(ROLES)
    rates: Mapping[str, Rate] = field(default_factory=dict)


def read_rules(name: str, words: list[str]) -> Tenant:
    """The tenant of a line's rules; raises `ConfigError` with the first that is not one."""
    roles: frozenset[str] = frozenset(ROLES)
    rates: dict[str, Rate] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ("roles", *KINDS):
            near = nearest_names(key, ["roles", *KINDS], 1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise ConfigError(f"{word!r} is no rule; rules are roles=, {', '.join(f'{kind}=' for kind in KINDS)}{hint}")
        if key == "roles":
            roles = frozenset(part for part in value.split(",") if part)
            if not roles or not roles <= set(ROLES):
                raise ConfigError(f"roles={value}: roles are {', '.join(ROLES)}")
        else:
            rates[key] = _read_rate(key, value)
    return Tenant(name, roles, rates)


def _read_rate(kind: str, text: str) -> Rate:
    match = _RATE.fullmatch(text)
    if match is None or match["time"] not in SECONDS or not int(match["number"]):
        raise ConfigError(
            f"{kind}={text}: a rate is a number and a time, such as 600/minute or 20GB/day; times are {', '.join(SECONDS)}"
        )
    return Rate(int(match["number"]) * _UNITS[match["unit"]], SECONDS[match["time"]])
