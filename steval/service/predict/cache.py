"""Answers that were given before. The same model, request and seed give the same values, so they need not be computed again.

Every key has its own: how quickly an answer comes tells nobody what another key has asked. Where the bytes are used up, the oldest
answer of the key that holds most goes.
"""

import threading
from collections import OrderedDict

from steval.service.http.telemetry import ServiceMetrics

LARGEST_PART = 8
"""An answer of more than an eighth of the bytes is not kept."""


class AnswerCache:
    """JSON answers of one worker, by key and tag; `max_bytes` of 0 keeps none. May be used from any thread."""

    def __init__(self, max_bytes: int, metrics: ServiceMetrics):
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._answers: dict[str, OrderedDict[str, bytes]] = {}
        self._held: dict[str, int] = {}

    def get(self, owner: str, tag: str) -> bytes | None:
        """An answer that the key was given before; None where there is none."""
        with self._lock:
            mine = self._answers.get(owner)
            found = mine.get(tag) if mine is not None else None
            if mine is not None and found is not None:
                mine.move_to_end(tag)
        if self._max_bytes:
            self._metrics.cache("miss" if found is None else "hit")
        return found

    def put(self, owner: str, tag: str, answer: bytes) -> None:
        """Keep an answer, where it is not too large."""
        if len(answer) > self._max_bytes // LARGEST_PART:
            return
        with self._lock:
            self._drop(owner, tag)
            while sum(self._held.values()) + len(answer) > self._max_bytes:
                largest = max(self._held, key=lambda name: self._held[name])
                self._drop(largest, next(iter(self._answers[largest])))
            self._answers.setdefault(owner, OrderedDict())[tag] = answer
            self._held[owner] = self._held.get(owner, 0) + len(answer)
            self._metrics.cache_memory(sum(self._held.values()))

    def _drop(self, owner: str, tag: str) -> None:
        mine = self._answers.get(owner)
        if mine is None or tag not in mine:
            return
        self._held[owner] -= len(mine.pop(tag))
        if not mine:
            del self._answers[owner], self._held[owner]
