"""Limits on connections: how many, how long until a request's header is there, how long idle.

uvicorn closes a connection that is idle after an answer; one that never sends, or sends half a header, it keeps for ever, and when
the process's file descriptors are used up it accepts nobody. Here a connection without a request in progress has a deadline, and
where there are as many as allowed, the one that has been without a request for longest makes room.
"""

import asyncio
import resource
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

RESERVED_FILES = 128
"""Descriptors for the checkpoint, logs, jobs and answers."""
FEWEST = 8
FLUSH_SECONDS = 60.0
"""For what has been written to a connection that is being closed."""


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with these limits; `limited` makes the class for given ones."""

    max_connections: int
    header_seconds: float
    _deadline: asyncio.TimerHandle | None = None
    _waiting_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Make room for the connection, or end it where all others are at work."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._make_room():
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """A part of a request; the deadline holds until its header is whole."""
        super().data_received(data)
        if self.is_busy:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """The next request has a deadline of its own, whatever the client still sends of this one."""
        super().on_response_complete()
        if not self.is_busy and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _make_room(self) -> bool:
        others = (one for one in self.connections if isinstance(one, GuardedProtocol) and one is not self)
        idle = [one for one in others if not one.is_busy and not one.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=lambda one: one._waiting_since).transport.abort()
        return True

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting_since = self.loop.time()
        self._deadline = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.is_busy and not self.transport.is_closing():
            self.transport.close()  # sends first what has been written
            self.loop.call_later(FLUSH_SECONDS, self.transport.abort)


def limited(max_connections: int, header_seconds: float) -> type[GuardedProtocol]:
    """The protocol with these limits; fewer connections where the process has few file descriptors."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + RESERVED_FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        max_connections = min(max_connections, max(FEWEST, files - RESERVED_FILES))
    limits: dict[str, Any] = {"max_connections": max_connections, "header_seconds": header_seconds}
    return type("LimitedProtocol", (GuardedProtocol,), limits)


def install(max_connections: int, header_seconds: float) -> None:
    """Have uvicorn use it in this process: BentoML starts uvicorn without a way to hand it a protocol."""
    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS
    protocols["auto"] = limited(max_connections, header_seconds)
