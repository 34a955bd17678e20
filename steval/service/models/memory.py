"""What the models of a worker take of its memory: room is made before one is loaded, and kept count of until it has gone."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from steval.errors import ServiceError
from steval.service.http.telemetry import ServiceMetrics
from steval.service.models.below import Found
from steval.service.models.loaded import Model
from steval.wording import counted


@dataclass(eq=False)
class Held:
    """A model in memory."""

    model: Model
    num_bytes: int
    users: int = 0
    base: "Held | None" = None
    """Of an adapter: the model whose tensors it shares, and so a user of it."""
    retired: bool = False
    """Another has taken its place: it goes when its last request is answered."""


class ModelMemory:
    """Bytes of all models in memory, the retired and the one that is being loaded among them.

    `changed` guards it and everything that its owner calls it from; `max_bytes` bounds it, None does not; `patience` is how
    long, in seconds, room is waited for while models are in use.
    """

    def __init__(self, changed: threading.Condition, metrics: ServiceMetrics, max_bytes: int | None, patience: float):
        self._changed = changed
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._patience = patience
        self._num_bytes = 0
        self._is_over = False

    def require_room(self, found: Found, beside: int) -> None:
        """A `ServiceError` 503 where `found` can never be in memory: `beside` bytes stay there whatever goes."""
        limit, needed = self._max_bytes, found.num_bytes
        if limit is None or needed + beside <= limit:
            return
        stays = (
            f" beside the {beside:,} of what stays in memory with it (its base, the default model)" if beside else ""
        )
        raise ServiceError(
            f"the model {found.name!r} needs {counted(needed, 'byte')}{stays}, more than the {limit:,} that this service has for "
            "models (STEVAL_MAX_MODEL_BYTES)",
            status=503,
            code="model_too_large",
        )

    def reserve(self, found: Found, drop_one: Callable[[], bool]) -> None:
        """Reserve the bytes of `found`; `drop_one` lets a model go that nobody uses, or returns False. `ServiceError` 503."""
        limit, needed = self._max_bytes, found.num_bytes
        deadline = time.monotonic() + self._patience
        with self._changed:
            while limit is not None and self._num_bytes + needed > limit:
                if drop_one():
                    continue
                left = deadline - time.monotonic()
                if left <= 0 or self._is_over:
                    raise ServiceError(
                        "the models in use leave no memory for another one; come back later",
                        status=503,
                        code="busy",
                        retry_after=self._patience / 2,
                    )
                self._changed.wait(left)
            self._count(needed)

    def free(self, num_bytes: int) -> None:
        """Give back what was reserved for a model that could not be loaded; `changed` is held."""
        self._count(-num_bytes)

    def retire(self, held: Held) -> None:
        """Let a model go with its last request; `changed` is held."""
        held.retired = True
        self._let_go_if_done(held)

    def give_back(self, held: Held) -> None:
        """A request, or an adapter on it, has done with a model; `changed` is held."""
        held.users -= 1
        self._let_go_if_done(held)
        self._changed.notify_all()

    def wait_no_more(self) -> None:
        """From now on nobody waits for room."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _let_go_if_done(self, held: Held) -> None:
        if held.retired and not held.users:
            self._count(-held.num_bytes)
            # in a thread of its own: the batcher may still be at cells that nobody waits for
            threading.Thread(target=held.model.close, name="steval-closing", daemon=True).start()
            if held.base is not None:
                self.give_back(held.base)

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._metrics.model_memory(self._num_bytes)
