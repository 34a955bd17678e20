"""Clients that ask a service as fast as it answers, and what came of it.

A closed loop: a client sends its next request when it has its answer, and one that is asked to come back (`Retry-After`) does so.
Its latencies are what so many users see. While the service stalls, its clients wait instead of sending, so a stall is one slow
request for each client, not for each request that an independent stream would have sent meanwhile (coordinated omission).
"""

import asyncio
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import numpy as np

from steval.service.client import Connection
from steval.service.forms import ARROW, JSON
from steval.service.http.answers import CODE_HEADER
from steval.service.load.plan import LoadPlan
from steval.wording import counted, whole_number

log = logging.getLogger(__name__)

TIMEOUT = 120.0
"""Seconds that a client waits for an answer."""
PAUSE = 0.1
"""Seconds before a client tries again where there was no answer that says when."""
MOST_PAUSE = 5.0
BUSY = 0.8
"""Share of a processor from which on this program itself is what is measured."""
_ACCEPT = {"mean": JSON, "cells": ARROW}


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent, how long it took, and the code of its error."""

    began: float
    seconds: float
    code: str | None = None


@dataclass(frozen=True)
class Level:
    """What came of so many clients at once; latencies are of good answers alone."""

    concurrency: int
    answers: int
    """Good ones."""
    seconds: float
    """From the first counted request to the last answer."""
    requests_per_second: float
    cells_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    errors: dict[str, int] = field(default_factory=dict)
    """By code."""
    client_cpu: float = 0.0
    """Processor time of this program by wall time."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def measure(connection: Connection, plan: LoadPlan) -> list[Level]:
    """Every level of `plan`, which names its perturbations; the log tells of each."""
    return asyncio.run(_measure(connection, plan))


async def _measure(connection: Connection, plan: LoadPlan) -> list[Level]:
    numbers = itertools.count()
    levels = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(**connection.options(TIMEOUT), limits=limits) as client:
        for concurrency in plan.concurrency:
            level = await _level(client, plan, concurrency, numbers)
            rate = f"{level.requests_per_second:.1f} requests/s"
            log.info("%s for %g s: %s", counted(concurrency, "client"), plan.seconds, rate)
            levels.append(level)
    return levels


async def _level(client: httpx.AsyncClient, plan: LoadPlan, concurrency: int, numbers: Iterator[int]) -> Level:
    """The requests that were sent between warm-up and end, all of them waited for."""
    start = time.perf_counter() + plan.warmup
    end = start + plan.seconds
    answers: list[Answer] = []

    async def user() -> None:
        while time.perf_counter() < end:
            answer, pause = await _ask(client, plan, next(numbers))
            if answer.began >= start:
                answers.append(answer)
            if pause:
                await asyncio.sleep(min(pause, max(0.0, end - time.perf_counter())))

    users = [asyncio.create_task(user()) for _ in range(concurrency)]
    await asyncio.sleep(plan.warmup)
    busy, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*users)
    share = (time.process_time() - busy) / max(time.perf_counter() - began, 1e-9)
    return summarise(answers, concurrency, plan.cells, share)


async def _ask(client: httpx.AsyncClient, plan: LoadPlan, number: int) -> tuple[Answer, float]:
    """One request, its answer read to the end, and how long to wait before the next one."""
    content = json.dumps(plan.body(number))
    headers = {"Content-Type": JSON, "Accept": _ACCEPT[plan.output], "Accept-Encoding": "identity"}
    began = time.perf_counter()
    code, pause = None, 0.0
    try:
        async with client.stream("POST", "/predict", content=content, headers=headers) as response:
            async for _ in response.aiter_raw():
                pass
        if response.status_code != 200:
            code = response.headers.get(CODE_HEADER, f"status_{response.status_code}")
            after = whole_number(response.headers.get("retry-after", ""))
            pause = PAUSE if after is None else min(after, MOST_PAUSE)
    except httpx.TimeoutException:
        code = "timeout"
    except httpx.TransportError:
        code, pause = "connection", PAUSE
    return Answer(began, time.perf_counter() - began, code), pause


def summarise(answers: list[Answer], concurrency: int, cells: int, client_cpu: float = 0.0) -> Level:
    """The numbers of a level; percentiles are latencies that occurred (none is interpolated)."""
    good = [one for one in answers if one.code is None]
    first = min((one.began for one in answers), default=0.0)
    seconds = max((one.began + one.seconds for one in answers), default=0.0) - first
    rate = len(good) / seconds if seconds else 0.0
    p50, p95, p99, longest = _percentiles([1000 * one.seconds for one in good])
    return Level(
        concurrency=concurrency,
        answers=len(good),
        seconds=seconds,
        requests_per_second=rate,
        cells_per_second=rate * cells,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=longest,
        errors=dict(Counter(one.code for one in answers if one.code is not None).most_common()),
        client_cpu=client_cpu,
    )


def _percentiles(milliseconds: list[float]) -> list[float | None]:
    if not milliseconds:
        return [None] * 4
    return np.percentile(milliseconds, (50, 95, 99, 100), method="inverted_cdf").tolist()
