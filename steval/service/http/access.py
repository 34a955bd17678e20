"""Who is answered: holders of a key; without keys, this machine alone.

Without keys the service also refuses what a web page could make a browser on this machine send: requests of other origins
and host names other than `localhost` and loopback addresses (DNS rebinding), and requests with any sign of a proxy, whose
sender is unknown.
"""

import ipaddress
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from steval.errors import ServiceError
from steval.service.http.answers import error_answer
from steval.service.http.keys import KeyFile
from steval.service.http.quotas import Charge, Quotas
from steval.service.http.routing import Route, RouteTable
from steval.service.http.tenants import BYTES, REQUESTS, Tenant

KEY_NAME = "steval.key"
"""Where the scope of a request has the name of its key."""
CHARGE = "steval.charge"
"""Where the scope has the `Charge` of its key; absent where there are no keys."""
NOBODY = ""
"""Who asks where the service has no keys."""
_PROXY_HEADER = re.compile(
    r"forwarded|via|x-real-ip|true-client-ip|client-ip|x-client-ip|x-cluster-client-ip|x-remote-ip|x-remote-addr|cdn-loop|x-host"
    r"|x-request-start|x-http-destinationurl|x-http-host-override|x-iisnode-proto|x-cloud-trace-context"
    r"|(x-forward|x-original-|x-proxy|proxy-|cf-|x-amz|x-azure-|x-appengine-|x-envoy-|x-arr-|fastly-|akamai-|x-akamai-|x-vercel-"
    r"|fly-|x-nginx-|x-varnish|x-traefik-).*"
)
"""What proxies, load balancers and content networks add: none of it comes from a client on this machine."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class AccessMiddleware:
    """Lets a request through or answers 401 or 403; OPTIONS and public addresses need no key."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: RouteTable,
        key_file: Path | None = None,
        quotas: Quotas | None = None,
        no_auth: bool = False,
        origins: tuple[str, ...] = (),
    ):
        self._app = app
        self._routes = routes
        self._keys: KeyFile | None = KeyFile(key_file) if key_file is not None else None
        self._quotas = quotas
        self._no_auth = no_auth
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ServiceError as error:
                answer = error_answer(error)
                if error.http_status == 401:
                    answer.headers["WWW-Authenticate"] = 'Bearer realm="steval"'
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._refuse_foreign_origin(headers)
        route = self._routes.find(scope["path"])
        if scope["method"] == "OPTIONS" or (route is not None and route.public):
            return
        if self._no_auth:
            return
        if self._keys is None:
            _require_local(scope, headers)
            return
        key = _given_key(headers)
        tenant = self._keys.ring().tenant(key) if key else None
        if tenant is None:
            what = "this API key is not known" if key else "an API key is needed"
            raise ServiceError(
                f"{what}; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`", status=401, code="unauthorised"
            )
        scope[KEY_NAME] = tenant.name
        _require_role(tenant, route)
        if self._quotas is not None:
            scope[CHARGE] = Charge(self._quotas, tenant)
            if route is None or not route.quiet:
                self._quotas.take(tenant, REQUESTS)
                self._quotas.require(tenant, BYTES)

    def _refuse_foreign_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or self._no_auth or origin in self._origins:
            return
        if origin.split("://", 1)[-1] != headers.get("host", ""):
            raise ServiceError(
                f"pages of {origin[:200]} may not call this service; its operator allows origins with --cors-origin",
                status=403,
                code="forbidden_origin",
            )


def _require_role(tenant: Tenant, route: Route | None) -> None:
    if route is not None and route.role is not None and route.role not in tenant.roles:
        raise ServiceError(
            f"this needs a key with the role {route.role!r}; this one has {', '.join(sorted(tenant.roles))}",
            status=403,
            code="forbidden_role",
        )


def _given_key(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _require_local(scope: Scope, headers: Headers) -> None:
    client = (scope.get("client") or ("", 0))[0]
    if _is_loopback(client) and _names_this_machine(headers.get("host", "")) and not _came_by_proxy(headers):
        return
    raise ServiceError(
        "this service has no API keys and answers requests from its own machine alone; its operator gives keys with "
        "--api-key-file, or opens it to everybody with --no-auth",
        status=401,
        code="unauthorised",
    )


def _names_this_machine(host: str) -> bool:
    """Whether a Host header, with or without a port, is `localhost` or a loopback address: the names that no DNS can give."""
    match = _HOST.fullmatch(host)
    return match is not None and (match["name"].lower() == "localhost" or _is_loopback(match["name"].strip("[]")))


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _came_by_proxy(headers: Headers) -> bool:
    return any(_PROXY_HEADER.fullmatch(name) for name in headers.keys())  # noqa: SIM118 (a multi-dict)
