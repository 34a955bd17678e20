"""Micro-batcher: cell sets of many requests pass the network together; no request can fail or starve another.

While a batch is computed, sets of new requests gather; the next batch takes one set of each key in turn, and of each request
of a key, until it is full. Only where the last batch served several requests does the next one linger a few milliseconds for
the same clients to come back. If a batch fails, its sets are run alone, so that only the bad ones fail.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future

from steval.errors import ServiceError
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.sets import PlannedSet
from steval.wording import counted

log = logging.getLogger(__name__)

Run = Callable[[list[PlannedSet]], Iterable[PredictedSet]]
"""Predicts sets and yields them in their order."""
Perform = Callable[[Callable[[], None]], None]
"""Calls a function and waits for its end: in the thread of the network, which others may be using."""
Observe = Callable[[int, int, float], None]
"""Told of each batch: sets, cells, seconds in the network."""
Watch = Callable[[int], None]
"""Told of the difference whenever the number of reserved cells changes."""
WINDOW_CELLS = 1024
"""Cells of one request that may be computed and not yet taken: bounds what a slow client keeps in memory."""
RETRY_AFTER = (1.0, 60.0)


class QueuedSet(Future[PredictedSet]):
    """A set in the queue: the future of its cells, and when what happened to it, in nanoseconds of `time.time_ns`."""

    def __init__(self, planned: PlannedSet):
        super().__init__()
        self.planned = planned
        self.entered = time.time_ns()
        self.began = 0
        """When its batch began to pass the network."""
        self.ended = 0
        """When its cells were there."""

    def finish(self, predicted: PredictedSet) -> None:
        """Hand over the cells."""
        self.ended = time.time_ns()
        self.set_result(predicted)


class Ticket:
    """An accepted request: its cells are reserved until `close`. Use with `with`."""

    def __init__(self, batcher: "MicroBatcher", num_cells: int, owner: str):
        self._batcher = batcher
        self.owner = owner
        self.num_cells = num_cells
        self.waiting: deque[QueuedSet] = deque()
        self.closed = False

    def submit(self, planned: PlannedSet) -> QueuedSet:
        """Put one set into the queue."""
        return self._batcher.enqueue(self, planned)

    def windows(self, sets: Sequence[PlannedSet]) -> Iterator[QueuedSet]:
        """Futures of `sets` in order; at most `WINDOW_CELLS` cells ahead of the one that is being waited for."""
        ahead: deque[QueuedSet] = deque()
        num_ahead, position = 0, 0
        while ahead or position < len(sets):
            while position < len(sets) and (not ahead or num_ahead + sets[position].num_cells <= WINDOW_CELLS):
                ahead.append(self.submit(sets[position]))
                num_ahead, position = num_ahead + sets[position].num_cells, position + 1
            first = ahead.popleft()
            num_ahead -= first.planned.num_cells
            yield first

    def close(self) -> None:
        """Give the reserved cells back and drop what is still waiting. May be called twice."""
        if not self.closed:
            self.closed = True
            self._batcher.release(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MicroBatcher:
    """Makes batches of at most `batch_cells` cells in a thread of its own; `max_queued_cells` bounds what is accepted."""

    def __init__(
        self,
        run: Run,
        *,
        batch_cells: int,
        max_queued_cells: int,
        linger: float,
        perform: Perform = lambda function: function(),
        observe: Observe | None = None,
        watch: Watch | None = None,
    ):
        self._run = run
        self._batch_cells = batch_cells
        self._max_queued_cells = max_queued_cells
        self._linger = linger
        self._perform = perform
        self._observe = observe
        self._watch = watch
        self._condition = threading.Condition()
        self._order: deque[Ticket] = deque()
        """Tickets with waiting sets, the one whose turn is next first."""
        self._turns: Counter[str] = Counter()
        """When each key was served last: keys take turns, and within a key its requests."""
        self._num_turns = 0
        self._reserved = 0
        self._rate: float | None = None
        """Cells per second, smoothed."""
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="steval-batcher", daemon=True)
        self._thread.start()

    @property
    def reserved_cells(self) -> int:
        """Cells accepted and not yet answered."""
        return self._reserved

    def accept(self, num_cells: int, owner: str = "") -> Ticket:
        """Reserve room for a request of `owner`; a full queue is a `ServiceError` 503 that says when to come back."""
        with self._condition:
            if self._stopping:
                raise ServiceError("the service is shutting down", status=503, code="shutting_down", retry_after=5)
            if self._reserved and self._reserved + num_cells > self._max_queued_cells:
                raise ServiceError(
                    f"the queue is full: {counted(num_cells, 'more cell is', 'more cells are')} over the limit of "
                    f"{self._max_queued_cells:,}; come back after the time in Retry-After",
                    status=503,
                    code="busy",
                    retry_after=self._expected_wait(),
                )
            self._change_reserved(num_cells)
        return Ticket(self, num_cells, owner)

    def enqueue(self, ticket: Ticket, planned: PlannedSet) -> QueuedSet:
        """See `Ticket.submit`."""
        queued = QueuedSet(planned)
        with self._condition:
            if ticket.closed:
                raise CancelledError
            if not ticket.waiting:
                self._order.append(ticket)
            ticket.waiting.append(queued)
            self._condition.notify_all()
        return queued

    def release(self, ticket: Ticket) -> None:
        """See `Ticket.close`."""
        with self._condition:
            self._change_reserved(-ticket.num_cells)
            for waiting in ticket.waiting:
                waiting.cancel()
            ticket.waiting.clear()
            if ticket in self._order:
                self._order.remove(ticket)

    def stop(self) -> None:
        """Accept nothing more, finish what waits, end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join()

    def _change_reserved(self, difference: int) -> None:
        self._reserved += difference
        if self._watch is not None:
            self._watch(difference)

    def _expected_wait(self) -> float:
        low, high = RETRY_AFTER
        return low if not self._rate else min(high, max(low, self._reserved / self._rate))

    def _loop(self) -> None:
        last_served = 1
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._order or self._stopping)
                if not self._order:
                    return
                if last_served > 1 and not self._stopping:
                    self._linger_for(last_served)
                batch, last_served = self._take()
            if batch:
                self._execute(batch)

    def _linger_for(self, num_requests: int) -> None:
        deadline = time.monotonic() + self._linger
        while len(self._order) < num_requests and (left := deadline - time.monotonic()) > 0:
            self._condition.wait(left)

    def _take(self) -> tuple[list[QueuedSet], int]:
        """The next batch, and how many requests it serves."""
        batch: list[QueuedSet] = []
        served: set[int] = set()
        num_cells = 0
        while self._order:
            ticket = min(self._order, key=lambda waiting: self._turns[waiting.owner])
            size = ticket.waiting[0].planned.num_cells
            if batch and num_cells + size > self._batch_cells:
                break
            waiting = ticket.waiting.popleft()
            self._num_turns += 1
            self._turns[ticket.owner] = self._num_turns
            self._order.remove(ticket)
            if ticket.waiting:
                self._order.append(ticket)
            if waiting.set_running_or_notify_cancel():
                batch.append(waiting)
                num_cells += size
                served.add(id(ticket))
        return batch, len(served)

    def _execute(self, batch: list[QueuedSet]) -> None:
        asked = time.perf_counter()
        self._perform(lambda: self._compute(batch))
        rate = _num_cells(batch) / max(time.perf_counter() - asked, 1e-9)
        self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate

    def _compute(self, batch: list[QueuedSet]) -> None:
        """Pass a batch through the network and hand over its cells; it is counted before the last of them are."""
        started, began = time.perf_counter(), time.time_ns()
        for waiting in batch:
            waiting.began = began
        left = deque(batch)
        try:
            for predicted in self._run([waiting.planned for waiting in batch]):
                if len(left) == 1:
                    self._tell(batch, started)
                left.popleft().finish(predicted)
        except Exception as error:  # noqa: BLE001 (handed to the requests it belongs to)
            log.warning(
                "a batch of %s failed (%s); its %d unfinished run alone", counted(len(batch), "set"), error, len(left)
            )
            for waiting in left:
                self._run_alone(waiting)
            if left:
                self._tell(batch, started)

    def _tell(self, batch: list[QueuedSet], started: float) -> None:
        if self._observe is not None:
            self._observe(len(batch), _num_cells(batch), time.perf_counter() - started)

    def _run_alone(self, waiting: QueuedSet) -> None:
        try:
            (predicted,) = self._run([waiting.planned])
        except Exception as error:  # noqa: BLE001 (handed to the request it belongs to)
            waiting.set_exception(error)
        else:
            waiting.finish(predicted)


def _num_cells(batch: list[QueuedSet]) -> int:
    return sum(waiting.planned.num_cells for waiting in batch)
