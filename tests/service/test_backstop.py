"""The last time limit: nothing stays of a request that was answered, and what never answers is ended."""

import asyncio
import gc
import logging
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest
from bentoml._internal.server.base_app import BaseAppFactory
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from steval.service.http.backstop import Backstop
from steval.service.http.journal import ACCESS

REQUESTS = 300


def kept() -> Counter[str]:
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects())


@pytest.mark.parametrize(
    ("path", "status"), [("/models", 200), ("/livez", 200), ("/score/" + "0" * 32, 404), ("/nowhere", 404)]
)
def test_nothing_of_a_request_is_kept_once_it_is_answered(http, path, status):
    logging.getLogger(ACCESS).disabled = True  # the tests keep what is logged
    try:
        assert [http.get(path).status_code for _ in range(20)] == [status] * 20
        before = kept()
        for _ in range(REQUESTS):
            http.get(path)
        grown = {name: number for name, number in (kept() - before).items() if number > REQUESTS / 2}
    finally:
        logging.getLogger(ACCESS).disabled = False
    assert grown == {}


def behind(timeout: float) -> httpx.AsyncClient:
    async def slow(_):
        await asyncio.sleep(60)

    async def long(_):
        async def parts():
            yield b"first"
            await asyncio.sleep(4 * timeout)
            yield b" last"

        return StreamingResponse(parts())

    async def raises(_):
        raise TimeoutError

    async def quick(_):
        return PlainTextResponse("done")

    app = Starlette(routes=[Route(f"/{one.__name__}", one) for one in (slow, long, raises, quick)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(Backstop(app, timeout)), base_url="http://backstop")


def test_what_does_not_begin_to_answer_is_ended_and_what_has_begun_is_not():
    async def scene() -> None:
        async with behind(0.2) as client:
            assert (await client.get("/slow")).status_code == 504
            assert (await client.get("/long")).text == "first last"
            assert (await client.get("/quick")).text == "done"
            with pytest.raises(TimeoutError):  # the application's own is no limit of ours
                await client.get("/raises")

    asyncio.run(scene())


def test_it_takes_the_place_of_bentomls_own(http):
    (found,) = BaseAppFactory.middlewares.fget(SimpleNamespace(timeout=7.0, max_concurrency=None))
    assert (found.cls, found.kwargs) == (Backstop, {"timeout": 7.0})
