"""Limits on connections: how many, how long until a request's header is there, how long idle, how long unread.

uvicorn closes a connection that is idle after an answer; one that never sends, or sends half a header, it keeps for ever, and when
the process's file descriptors are used up it accepts nobody. Here a connection without a request in progress has a deadline, and
where there are as many as allowed, the one that has been without a request for longest makes room.

What uvicorn closes it keeps until the client has taken what was written, and its shutdown waits for that. Here a connection of
which nothing is taken for `send_seconds` is reset.

BentoML's supervisor keeps the listening socket until its workers have ended: whoever connected while they finish what they accepted
would be let in by the kernel, get no byte, and be reset at the end. Here it is closed first, and newcomers are refused at once.
"""

import asyncio
import logging
import resource
import socket
import struct
from collections.abc import Callable
from typing import Any

import uvicorn.config
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

CUT = "steval.cut"
"""Where the scope has the function that resets the request's connection."""
RESERVED_FILES = 128
"""Descriptors for the checkpoint, logs, jobs and answers."""
FEWEST = 8
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing drops what the client has not taken, and tells it so."""


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with these limits; `limited` makes the class for given ones."""

    max_connections: int
    header_seconds: float
    send_seconds: float
    _served: Any
    _deadline: asyncio.TimerHandle | None = None
    _waiting_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Make room for the connection, or end it where all others are at work."""
        super().connection_made(transport)
        self._served, self.app = self.app, self._serve
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
        if not self.is_busy:
            self._wait()

    def shutdown(self) -> None:
        """The process is to end: the answer in progress is the connection's last and says so, where it has not begun yet."""
        super().shutdown()
        if not self.is_busy:
            self._wait()
        elif not self.cycle.response_started:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def cut(self) -> None:
        """Reset the connection of a client that does not read its answer."""
        request_id = (self.scope or {}).get("steval.request_id")
        words = "nothing of an answer could be sent for %g seconds, because its client does not read; the connection is reset"
        log.warning(words, self.send_seconds, extra={"request_id": request_id})
        if self.is_busy:
            self.cycle.disconnected = True
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, which may cut the connection; one that it leaves without a whole answer has a deadline as well."""
        scope[CUT] = self.cut
        try:
            await self._served(scope, receive, send)
        finally:
            self._wait()

    def _make_room(self) -> bool:
        others = (one for one in self.connections if isinstance(one, GuardedProtocol) and one is not self)
        idle = [one for one in others if not one.is_busy and not one.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=lambda one: one._waiting_since).transport.abort()
        return True

    def _wait(self) -> None:
        if self not in self.connections:  # it is gone
            return
        self._waiting_since = self.loop.time()
        if self.transport.is_closing():
            self._flush(None)
        else:
            self._expect(self.header_seconds, self._give_up)

    def _expect(self, seconds: float, late: Callable[..., None], *arguments: Any) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, late, *arguments)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.is_busy:
            self.transport.close()  # sends first what has been written
        if self.transport.is_closing():
            self._flush(None)

    def _flush(self, before: int | None) -> None:
        """Wait on while the client takes some of what is left; `before` is what was left the last time, in bytes."""
        left = self.transport.get_write_buffer_size()
        if before is None or left < before:
            self._expect(self.send_seconds, self._flush, left)
        else:
            self.cut()


def limited(max_connections: int, header_seconds: float, send_seconds: float) -> type[GuardedProtocol]:
    """The protocol with these limits; fewer connections where the process has few file descriptors."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + RESERVED_FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        max_connections = min(max_connections, max(FEWEST, files - RESERVED_FILES))
    limits: dict[str, Any] = {
        "max_connections": max_connections,
        "header_seconds": header_seconds,
        "send_seconds": send_seconds,
    }
    return type("LimitedProtocol", (GuardedProtocol,), limits)


def install(max_connections: int, header_seconds: float, send_seconds: float) -> None:
    """Have uvicorn use it in this process: BentoML starts uvicorn without a way to hand it a protocol."""
    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS
    protocols["auto"] = limited(max_connections, header_seconds, send_seconds)


def stop_listening_first() -> None:
    """Have BentoML's supervisor do it in this process; workers have descriptors of their own, and close them as they stop."""
    from bentoml._internal.utils import circus

    arbiter: Any = circus.Arbiter
    stop = arbiter.stop

    def close_and_stop(self: Any) -> Any:
        self.sockets.close_all()
        return stop(self)

    arbiter.stop = close_and_stop
