"""The cells of one request on their way through the queue of a model."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

from steval.errors import ServiceError
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.plan import PredictionPlan
from steval.service.http.tracing import UNTRACED, Trace
from steval.service.models.shelf import Lease
from steval.service.predict.admission import Place
from steval.service.predict.batcher import MicroBatcher, QueuedSet, Ticket


class QueuedCells:
    """The cells of one request, computed in the service's batches within `seconds`.

    `admit` comes first, in the thread that does the work; `close` may come at any time, from any thread.
    """

    def __init__(self, lease: Lease, place: Place, seconds: float, trace: Trace = UNTRACED):
        self._lease = lease
        self._batcher: MicroBatcher = lease.model.batcher
        self._place = place
        self.trace = trace
        self._ticket: Ticket | None = None
        self._lock = threading.Lock()
        self.closed = False
        self._deadline = time.monotonic() + seconds

    def admit(self, plan: PredictionPlan) -> Iterator[PredictedSet]:
        """Reserve the plan's cells, or raise the `ServiceError` of a full queue; its sets, one by one as they are finished.

        Waiting past the deadline is a `ServiceError` 503.
        """
        with self._lock:
            if self.closed:
                raise CancelledError
            if self._ticket is not None:  # more is asked once the first part has been answered
                self._ticket.close()
            self._ticket = self._batcher.accept(plan.num_cells, self._place.owner)
        return self._sets(self._ticket, plan)

    def close(self) -> None:
        """Give the reserved cells back and drop what is still waiting. May be called twice."""
        with self._lock:
            self.closed = True
            if self._ticket is not None:
                self._ticket.close()
            self._place.release()
            self._lease.close()

    def _sets(self, ticket: Ticket, plan: PredictionPlan) -> Iterator[PredictedSet]:
        batches = _Batches(self.trace)
        try:
            for queued in ticket.windows(list(plan.sets())):
                cells = self._cells_of(queued)
                batches.add(queued)
                yield cells
        finally:
            batches.record()

    def _cells_of(self, queued: QueuedSet) -> PredictedSet:
        try:
            return queued.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError as error:
            raise ServiceError(
                "the prediction was given up: it took longer than the time limit; ask for fewer cells, or come back when "
                "the service is less busy",
                status=503,
                code="timeout",
                retry_after=5,
            ) from error


class _Batches:
    """Spans of a request's sets: for each batch that had some of them, the wait for it and its way through the network."""

    def __init__(self, trace: Trace):
        self._trace = trace
        self._last: list[QueuedSet] = []
        """Of one batch."""

    def add(self, queued: QueuedSet) -> None:
        """A set that has come back, in the order of the queue."""
        if not self._trace.is_collected:
            return
        if self._last and self._last[0].began != queued.began:
            self.record()
        self._last.append(queued)

    def record(self) -> None:
        """Write down the batch that was seen last."""
        if not self._last:
            return
        began, ended = self._last[0].began, max(one.ended for one in self._last)
        self._trace.record("queue", min(one.entered for one in self._last), began)
        num_cells = sum(one.planned.num_cells for one in self._last)
        self._trace.record("network", began, ended, **{"steval.cells": num_cells, "steval.sets": len(self._last)})
        self._last = []
