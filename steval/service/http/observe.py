"""Outermost middleware: request ids, access log, metrics, one error shape, no traceback ever."""

import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steval.service.http.access import CHARGE
from steval.service.http.answers import CODE_HEADER, reshape
from steval.service.http.journal import ACCESS
from steval.service.http.routing import OTHER, Route, RouteTable
from steval.service.http.telemetry import service_metrics
from steval.service.http.tracing import TRACE, UNTRACED, Trace, Tracing

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS)

REQUEST_ID = "x-request-id"
AUDIT = "steval.audit"
"""Where the scope has a dictionary for what the log line is to say beside the rest: `model`, `cells`, `job`."""
MOST_ERROR_BYTES = 2**20
CLIENT_LEFT = 499
"""Logged where a client went away before its answer began."""
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class ObserveMiddleware:
    """Gives each request an id (the client's, where it is a plain one), traces, logs and counts it, and puts errors into shape."""

    def __init__(self, app: ASGIApp, *, routes: RouteTable, tracing: Tracing):
        self._app = app
        self._routes = routes
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry; there are no websockets here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = service_metrics()
        exchange = _Exchange(scope, send, self._routes.find(scope["path"]))
        scope[TRACE] = exchange.trace = self._begin_trace(scope, exchange)
        metrics.started()
        try:
            await self._app(scope, receive, exchange.send)
            if exchange.status is None:
                await exchange.abandon()
        except Exception:
            log.exception("request failed", extra={"request_id": exchange.request_id})
            if exchange.status is not None:
                raise
            await exchange.fail()
        finally:
            seconds = time.perf_counter() - exchange.began
            metrics.finished(scope["method"], exchange.label, exchange.status or CLIENT_LEFT, seconds)
            if (charge := scope.get(CHARGE)) is not None:
                charge.used_bytes(scope.get("steval.bytes_in", 0) + exchange.bytes_out)
            _log_access(scope, exchange, seconds)
            _end_trace(scope, exchange)

    def _begin_trace(self, scope: Scope, exchange: "_Exchange") -> Trace:
        """The request's trace; those of health checks would bury the others."""
        name, headers = f"{scope['method']} {exchange.label}", Headers(scope=scope)
        facts = {
            "http.request.method": scope["method"],
            "http.route": exchange.label,
            "steval.request_id": exchange.request_id,
        }
        return self._tracing.request(name, headers, quiet=exchange.quiet, **facts)


class _Exchange:
    """One request and what has been sent as its answer; error answers are held back until they are whole."""

    def __init__(self, scope: Scope, send: Send, route: Route | None):
        self._send = send
        self._held: bytearray | None = None
        self._headers: MutableHeaders = MutableHeaders()
        self.began = time.perf_counter()
        self.status: int | None = None
        self.bytes_out = 0
        self.label = OTHER if route is None else route.path
        self.quiet = route is not None and route.quiet
        given = Headers(scope=scope).get(REQUEST_ID, "")
        self.request_id = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        self.trace: Trace = UNTRACED
        self.code: str | None = None
        scope["steval.request_id"] = self.request_id
        scope[AUDIT] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and self._held is not None:
            if len(self._held) < MOST_ERROR_BYTES:
                self._held += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(bytes(self._held))
        else:
            self.bytes_out += len(message.get("body", b""))
            await self._send(message)

    async def fail(self) -> None:
        """The answer to an exception that nobody caught."""
        self.status = 500
        await self._send_error(b"")

    async def abandon(self) -> None:
        """End an exchange whose client has left: BentoML waits for a first byte, also where nobody reads it."""
        await self._send({"type": "http.response.start", "status": CLIENT_LEFT, "headers": []})
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        self._headers = MutableHeaders(raw=list(message.get("headers", ())))
        if message["status"] >= 400:
            self._held = bytearray()
            return
        self._complete(self._headers)
        await self._send({**message, "headers": self._headers.raw})

    async def _send_error(self, body: bytes) -> None:
        status = self.status or 500
        if CODE_HEADER not in self._headers:
            answer = reshape(status, body)
            kept = {name: self._headers[name] for name in ("allow", "retry-after") if name in self._headers}
            status, body = answer.status_code, bytes(answer.body)
            self._headers = MutableHeaders({**kept, CODE_HEADER: answer.headers[CODE_HEADER]})
            self.status = status
        self.code = self._headers.get(CODE_HEADER)
        value: dict[str, Any] = json.loads(body)
        value["error"]["request_id"] = self.request_id
        body = json.dumps(value).encode()
        self._headers["content-type"] = "application/json"
        self._headers["content-length"] = str(len(body))
        self._complete(self._headers)
        self.bytes_out = len(body)
        await self._send({"type": "http.response.start", "status": status, "headers": self._headers.raw})
        await self._send({"type": "http.response.body", "body": body})

    def _complete(self, headers: MutableHeaders) -> None:
        headers[REQUEST_ID] = self.request_id
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)


def _log_access(scope: Scope, exchange: _Exchange, seconds: float) -> None:
    client = scope.get("client") or ("", 0)
    quiet = exchange.quiet and (exchange.status or 0) < 400
    access_log.log(
        logging.DEBUG if quiet else logging.INFO,
        "%s %s",
        *(scope["method"], exchange.label if exchange.label != OTHER else scope["path"][:200]),
        extra={
            "request_id": exchange.request_id,
            "trace_id": exchange.trace.trace_id,
            "method": scope["method"],
            "route": exchange.label,
            "status": exchange.status or CLIENT_LEFT,
            "milliseconds": round(seconds * 1000, 2),
            "client": client[0],
            "key": scope.get("steval.key"),
            "bytes_in": scope.get("steval.bytes_in"),
            "bytes_out": exchange.bytes_out,
            "code": exchange.code,
            **scope[AUDIT],
        },
    )


def _end_trace(scope: Scope, exchange: _Exchange) -> None:
    if exchange.trace.is_collected:
        status = exchange.status or CLIENT_LEFT
        facts = {"key": scope.get("steval.key"), **scope[AUDIT]}
        exchange.trace.end(
            is_error=status >= 500,
            **{"http.response.status_code": status, "error.type": exchange.code},
            **{f"steval.{name}": value for name, value in facts.items()},
        )
