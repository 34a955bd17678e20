"""The table of routes: a path is an address as a whole, and everything that reads the table agrees with it."""

import asyncio

import pytest

from steval.service.http.routing import GateMiddleware
from steval.service.openapi import openapi_document
from steval.service.routes import ROUTES
from steval.service.site import make_site

ELSEWHERE = [
    "/predict\n",
    "/predict/",
    "//predict",
    "/model\r",
    "/score/",
    "/score/a\nb",
    "/score/a/b",
    "/page/a/b",
    "/Predict",
    "",
]


def answered(path: str, method: str = "POST") -> int | None:
    """The gate's status; None where it lets the request through."""
    statuses = []

    async def through(scope, receive, send):
        pass

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(GateMiddleware(through, routes=ROUTES)(scope, None, send))
    return statuses[0] if statuses else None


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_path_that_is_nearly_an_address_is_none(path):
    assert ROUTES.find(path) is None
    assert ROUTES.label(path) == "other"
    assert answered(path) == 404


@pytest.mark.parametrize("route", ROUTES.routes, ids=lambda route: route.path)
def test_every_address_is_found_under_its_own_label_and_takes_its_methods_alone(route):
    path = route.path.replace("{id}", "0" * 32).replace("{name}", "report.html")
    assert ROUTES.find(path) is route
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"):
        assert answered(path, method) == (None if route.takes(method) else 405)


def test_what_is_documented_is_answered_by_a_handler_or_by_bentoml():
    handled = {(route.path, method) for route in make_site().routes for method in route.methods if method != "HEAD"}
    ours = {(route.path, one.method) for route in ROUTES for one in route.operations if one.handler is not None}
    assert handled == ours
    documented = {
        (path, method.upper())
        for path, item in openapi_document(ROUTES)["paths"].items()
        for method in item
        if method != "parameters"
    }
    bentoml = {("/predict", "POST"), ("/livez", "GET"), ("/readyz", "GET")}
    assert documented == (ours | bentoml) - {("/page/{name}", "GET")}
