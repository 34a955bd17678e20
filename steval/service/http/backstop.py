"""BentoML's time limit until the first byte of an answer, without its timers of requests that have been answered.

BentoML starts a timer for each request and lets it run out: half a kilobyte of objects each, kept for minutes and spread over the
heap, so that a worker which answered a hundred requests a second grew by an eighth (74 MB) in five minutes.
"""

import asyncio
from typing import Any

from bentoml._internal.server.http import traffic
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Backstop:
    """Ends a request that has not begun to answer after `timeout` seconds: 504."""

    def __init__(self, app: ASGIApp, timeout: float):
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = asyncio.timeout(self._timeout)

        async def forward(message: Message) -> None:
            if limit.expired():  # what is being ended says nothing any more
                return
            if limit.when() is not None:
                limit.reschedule(None)
            await send(message)

        try:
            async with limit:
                await self._app(scope, receive, forward)
        except TimeoutError:
            if not limit.expired():
                raise
            error = {"error": f"Not able to process the request in {self._timeout} seconds"}
            await JSONResponse(error, status_code=504)(scope, receive, send)


def install() -> None:
    """Have BentoML use it in this process; BentoML has no setting for it."""
    module: Any = traffic
    module.TimeoutMiddleware = Backstop
