"""What an address is, and the table of them: who may ask, with what body, under which metrics label, and what answers.

The table itself is `steval.service.routes`; observation, access, bodies, the application and `/openapi.json` read it, and
nothing below the gate hears of an address that is not in it.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from steval.service.http.answers import shaped

Handler = Callable[[Request], Awaitable[Response]]
OTHER = "other"
"""Label of everything that is not in the table."""
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PARAMETER = re.compile(r"\{[a-z]+\}")


@dataclass(frozen=True, eq=False)
class Operation:
    """A method of an address, with what OpenAPI says of it."""

    method: str
    name: str
    """`operationId`."""
    summary: str
    tag: str
    successes: Mapping[str, Any]
    """OpenAPI's responses by status."""
    errors: tuple[int, ...] = ()
    """Statuses beside those that every operation may have."""
    handler: Handler | None = None
    """None: BentoML answers."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """OpenAPI's `parameters` and `requestBody`."""


@dataclass(frozen=True, eq=False)
class Route:
    """An address."""

    path: str
    """Template such as `/score/{id}`; also the label in metrics and logs."""
    operations: tuple[Operation, ...]
    public: bool = False
    """Needs no key: health, the page and the description, which hold no data."""
    role: str | None = None
    """Role that a key needs (`tenants.ROLES`); None: any key."""
    quiet: bool = False
    """Not logged where it went well: what operators' tools ask every second."""
    documented: bool = True
    media_types: tuple[str, ...] = ()
    """Of the bodies that it takes."""
    upload: bool = False
    """Its body streams, under the limits of an upload; others are read whole first."""
    parameters: tuple[Mapping[str, Any], ...] = ()
    """OpenAPI's parameters of the path."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods, HEAD beside GET left out."""
        return tuple(operation.method for operation in self.operations)

    def takes(self, method: str) -> bool:
        """Whether the address answers `method`."""
        return method in self.methods or (method == "HEAD" and "GET" in self.methods)


@dataclass(frozen=True, eq=False)
class RouteTable:
    """All addresses; a path is one of them as a whole or none of them."""

    routes: tuple[Route, ...]

    def __iter__(self) -> Iterator[Route]:
        return iter(self.routes)

    def find(self, path: str) -> Route | None:
        """The address of a path (decoded, as ASGI has it)."""
        return next((route for route in self.routes if _pattern(route.path).fullmatch(path)), None)

    def label(self, path: str) -> str:
        """The template of a path, out of a small fixed set."""
        route = self.find(path)
        return OTHER if route is None else route.path


class GateMiddleware:
    """Lets through what the table holds; answers 404 and 405 to the rest, so that no framework below matches its own way."""

    def __init__(self, app: ASGIApp, *, routes: RouteTable):
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http" and (refusal := self._refusal(scope["path"], scope["method"])) is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, method: str) -> Response | None:
        route = self._routes.find(path)
        if route is None:
            return shaped(404, "not_found", "there is nothing here; GET /openapi.json lists the addresses")
        if route.takes(method):
            return None
        allowed = ", ".join(route.methods)
        message = f"{path} takes {allowed}, not {method}"
        return shaped(405, "method_not_allowed", message, headers={"Allow": allowed})


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = (re.escape(piece) for piece in _PARAMETER.split(template))
    return re.compile("[^/\x00-\x1f\x7f]+".join(pieces))
