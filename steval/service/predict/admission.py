"""Who may put cells into the queue, and when: the cheap step before a request is planned.

The queue's places are cells. A request that does not fit waits in line for a while, which costs nothing, instead of being refused
and coming back at once, which cost the processor that the predictions need. Keys share: one that is alone may hold half of
the places, one of n active keys a part of n + 1, so that there is room for a newcomer; a place that becomes free goes to the
key that holds least.
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

from steval.errors import ServiceError
from steval.service.http.access import NOBODY
from steval.wording import counted


class Place:
    """Cells that a request holds until `release`, which may be called from any thread, and twice."""

    def __init__(self, admission: "Admission", owner: str, num_cells: int):
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self.owner = owner
        self.num_cells = num_cells
        self._held = True

    def release(self) -> None:
        """Give the cells back."""
        if self._held:
            self._held = False
            self._loop.call_soon_threadsafe(self._admission.release, self)


@dataclass(eq=False)
class _InLine:
    num_cells: int
    turn: "asyncio.Future[Place]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """The places of one worker; lives in its event loop."""

    def __init__(self, max_cells: int, seconds: float):
        self._max_cells = max_cells
        self._seconds = seconds
        self._held: Counter[str] = Counter()
        self._lines: dict[str, deque[_InLine]] = {}

    async def admit(self, owner: str, num_cells: int) -> Place:
        """Places for `num_cells`, now or within the time limit; a `ServiceError` 503 where there were none."""
        waiting = _InLine(num_cells)
        self._lines.setdefault(owner, deque()).append(waiting)
        self._serve()
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(waiting.turn)
        except TimeoutError as error:
            self._leave(owner, waiting)
            raise ServiceError(
                f"the queue is full: {self._why(owner, num_cells)}; come back after the time in Retry-After",
                status=503,
                code="busy",
                retry_after=self._seconds / 2,
            ) from error
        except asyncio.CancelledError:  # the client has left
            self._leave(owner, waiting)
            raise

    def release(self, place: Place) -> None:
        """See `Place.release`."""
        self._held[place.owner] -= place.num_cells
        if not self._held[place.owner]:
            del self._held[place.owner]
        self._serve()

    def _leave(self, owner: str, waiting: _InLine) -> None:
        """Take a request out of the line, or give back the place that it was given in the same moment."""
        if waiting.turn.done():
            waiting.turn.result().release()
            return
        line = self._lines[owner]
        line.remove(waiting)
        if not line:
            del self._lines[owner]
        self._serve()

    def _limit(self, owner: str) -> int:
        """Cells that a key may hold now; without keys all places are for all."""
        return self._max_cells if owner == NOBODY else self._max_cells // (len({*self._held, *self._lines, owner}) + 1)

    def _why(self, owner: str, num_cells: int) -> str:
        """What a key may know: its own cells, not how many others hold, nor how many others there are."""
        if owner != NOBODY:
            held = counted(self._held[owner], "cell")
            return f"{held} of this key waiting or computed, and there is no room for {num_cells:,} more"
        return (
            f"{counted(self._held.total(), 'cell')} waiting or computed, {num_cells:,} more are over the limit of "
            f"{self._max_cells:,}"
        )

    def _serve(self) -> None:
        """Give what is free to those in line, the key that holds least first; who fits in later does not overtake."""
        while self._lines:
            able = [owner for owner in self._lines if self._may(owner, self._lines[owner][0].num_cells)]
            if not able:
                return
            owner = min(able, key=lambda name: self._held[name])
            first = self._lines[owner][0]
            if self._held.total() and self._held.total() + first.num_cells > self._max_cells:
                return
            self._lines[owner].popleft()
            if not self._lines[owner]:
                del self._lines[owner]
            self._held[owner] += first.num_cells
            first.turn.set_result(Place(self, owner, first.num_cells))

    def _may(self, owner: str, num_cells: int) -> bool:
        held = self._held[owner]
        return not held or held + num_cells <= self._limit(owner)
