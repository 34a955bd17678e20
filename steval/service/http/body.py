"""Bodies: media types, sizes counted as they arrive, time limits, and clients that go away."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steval.errors import ServiceError
from steval.service.http.access import KEY_NAME, NOBODY
from steval.service.http.answers import error_answer
from steval.service.http.connections import CUT
from steval.service.http.routing import WITH_BODY, Route, RouteTable
from steval.service.settings import ServiceSettings
from steval.wording import counted, whole_number


class BodyMiddleware:
    """Refuses bodies of other media types (415), too large (413) or too slow (408); stops work for clients that left.

    A small body is read whole before anything else runs, so that a slow client occupies nothing; an upload streams.
    """

    def __init__(self, app: ASGIApp, *, routes: RouteTable, settings: ServiceSettings):
        self._app = app
        self._routes = routes
        self._settings = settings
        self._in_progress: Counter[str] = Counter()
        """Requests of each key."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        timed = _TimedSend(send, self._settings.send_timeout, scope.get(CUT))
        send = timed.send
        try:
            if scope["method"] in WITH_BODY:
                await self._with_body(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except ServiceError as error:
            await error_answer(error)(scope, receive, send)
        except Exception:
            if not timed.has_cut:  # else the work was ended for a client that is gone, and the log says so
                raise

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        route = self._routes.find(scope["path"])
        uploads = route is not None and route.upload
        limit = self._settings.max_upload_bytes if uploads else self._settings.max_body_bytes
        _require_media_type(route, headers)
        _require_length(headers, limit)
        seconds = self._settings.upload_timeout if uploads else self._settings.body_timeout
        counted = _Counted(scope, receive, limit, seconds)
        if uploads:
            await self._app(scope, counted.receive, send)
            return
        owner = scope.get(KEY_NAME) or NOBODY
        self._require_room(owner)
        self._in_progress[owner] += 1
        try:
            body = await counted.whole()
            if body is not None:
                await _while_connected(self._app, scope, body, receive, send)
        finally:
            self._in_progress[owner] -= 1
            if not self._in_progress[owner]:
                del self._in_progress[owner]

    def _require_room(self, owner: str) -> None:
        """A `ServiceError` 429 before anything is read: one key may have half of the requests, so that others get in."""
        most, total = self._settings.max_requests, self._in_progress.total()
        own, share = self._in_progress[owner], most if owner == NOBODY else max(1, most // 2)
        if total < most and own < share:
            return
        which = counted(total, "request") if total >= most else f"{counted(own, 'request')} of this key"
        raise ServiceError(
            f"{which} are in progress, the most that are allowed; come back later",
            status=429,
            code="too_many_requests",
            retry_after=1,
        )


class _Counted:
    """A request's body, counted and timed."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, seconds: float):
        self._scope, self._receive, self._limit = scope, receive, limit
        self._seconds = seconds
        self._deadline: float | None = None
        self._done = False
        self.count = 0

    async def receive(self) -> Message:
        """The next message; a `ServiceError` where the body is over its limits."""
        if self._done:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise ServiceError(
                f"the request's body did not arrive within {self._seconds:g} seconds",
                status=408,
                code="request_timeout",
            ) from error
        if message["type"] == "http.request":
            self.count += len(message.get("body", b""))
            self._scope["steval.bytes_in"] = self.count
            self._done = not message.get("more_body", False)
            if self.count > self._limit:
                raise _too_large(self._limit)
        return message

    async def whole(self) -> bytes | None:
        """The whole body; None where the client left before it was sent."""
        parts = []
        while not self._done:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
        return b"".join(parts)


class _TimedSend:
    """`send` that gives up on a client which takes no byte for too long: `cut` resets its connection, where the server can."""

    def __init__(self, send: Send, seconds: float, cut: Callable[[], None] | None):
        self._send, self._seconds, self._cut = send, seconds, cut
        self.has_cut = False

    async def send(self, message: Message) -> None:
        """Send it, or end what sends with a `TimeoutError`."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            if self._cut is not None and not self.has_cut:
                self.has_cut = True
                self._cut()
            raise


async def _while_connected(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run `app` on a body that was read already; cancel it when the client disconnects."""
    gone = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    answer = asyncio.ensure_future(app(scope, replay, send))
    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait((answer, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
        await _finished(answer)
    finally:
        watcher.cancel()
        answer.cancel()


async def _finished(answer: "asyncio.Future[None]") -> None:
    try:
        await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


def _require_media_type(route: Route | None, headers: Headers) -> None:
    if route is None or not route.media_types:
        return
    allowed = route.media_types
    given = headers.get("content-type", "").split(";")[0].strip().lower()
    if given not in allowed:
        raise ServiceError(
            f"Content-Type is {given[:100] or 'missing'!r}; this address takes {_either(allowed)}",
            status=415,
            code="unsupported_media_type",
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ServiceError(
            f"Content-Encoding {encoding[:100]!r} is not taken; send the body as it is",
            status=415,
            code="unsupported_media_type",
        )


def _require_length(headers: Headers, limit: int) -> None:
    length = whole_number(headers.get("content-length", ""))
    if length is not None and length > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ServiceError:
    return ServiceError(f"the body is larger than the limit of {counted(limit, 'byte')}", status=413, code="too_large")


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)
