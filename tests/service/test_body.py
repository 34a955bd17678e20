"""Bodies and clients at the ASGI level: slow readers, vanished clients, requests in progress."""

import asyncio

import pytest

from steval.service.http.body import BodyMiddleware
from steval.service.routes import ROUTES
from steval.service.settings import ServiceSettings


def scope(path: str = "/predict", **headers: str) -> dict:
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }


class Client:
    """Sends `messages`, then is silent; keeps what it is sent. `reads` False: takes nothing."""

    def __init__(self, *messages: dict, reads: bool = True):
        self._messages = list(messages)
        self._reads = reads
        self.sent: list[dict] = []

    async def receive(self) -> dict:
        if self._messages:
            message = self._messages.pop(0)
            if "after" in message:
                await asyncio.sleep(message.pop("after"))
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict) -> None:
        if not self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]


BODY = {"type": "http.request", "body": b"{}", "more_body": False}


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (await receive())["body"]})


def run(app, client: Client, limits: dict, **headers: str) -> None:
    middleware = BodyMiddleware(app, routes=ROUTES, settings=ServiceSettings(**limits))
    asyncio.run(asyncio.wait_for(middleware(scope(**headers), client.receive, client.send), 5))


def test_a_body_arrives_whole():
    client = Client({"type": "http.request", "body": b"{", "more_body": True}, {**BODY, "body": b"}"})
    run(answer, client, {})
    assert client.sent[1]["body"] == b"{}"


def test_a_body_that_stops_is_408():
    client = Client({"type": "http.request", "body": b"{", "more_body": True})
    run(answer, client, {"body_timeout": 0.1})
    assert client.status == 408


def test_a_body_is_counted_not_believed():
    client = Client(*({"type": "http.request", "body": b"x" * 60, "more_body": True} for _ in range(2)))
    run(answer, client, {"max_body_bytes": 100}, content_length="3")
    assert client.status == 413


def test_a_declared_length_is_refused_before_anything_is_read():
    client = Client()
    run(answer, client, {"max_body_bytes": 100}, content_length="101")
    assert client.status == 413


def test_a_reader_that_takes_nothing_is_given_up():
    with pytest.raises(TimeoutError):
        run(answer, Client(BODY, reads=False), {"send_timeout": 0.1})


def test_work_for_a_client_that_left_is_cancelled():
    cancelled = []

    async def long_work(scope, receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    client = Client(BODY, {"type": "http.disconnect", "after": 0.05})
    run(long_work, client, {})
    assert cancelled == [True]
    assert client.sent == []


def test_a_client_that_leaves_while_it_sends_starts_nothing():
    async def never(scope, receive, send):
        raise AssertionError

    run(never, Client({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}), {})


def test_a_key_may_have_half_of_the_requests_counted_before_their_bodies_come():
    async def scene() -> list[Client]:
        middleware = BodyMiddleware(answer, routes=ROUTES, settings=ServiceSettings(max_requests=4, body_timeout=1))
        slow = {"type": "http.request", "body": b"{", "more_body": True}
        clients = [Client(slow) for _ in range(2)]
        reading = [
            asyncio.ensure_future(middleware({**scope(), "steval.key": "greedy"}, one.receive, one.send))
            for one in clients
        ]
        await asyncio.sleep(0.05)
        for owner, messages in (("greedy", ()), ("polite", (BODY,))):
            clients.append(Client(*messages))
            await middleware({**scope(), "steval.key": owner}, clients[-1].receive, clients[-1].send)
        await asyncio.gather(*reading)
        assert not middleware._in_progress
        return clients

    assert [client.status for client in asyncio.run(scene())] == [408, 408, 429, 200]


def test_more_requests_than_allowed_are_429():
    async def both() -> tuple[Client, Client]:
        release = asyncio.Event()

        async def wait(scope, receive, send):
            await release.wait()
            await answer(scope, receive, send)

        middleware = BodyMiddleware(wait, routes=ROUTES, settings=ServiceSettings(max_requests=1))
        first, second = Client(BODY), Client(BODY)
        running = asyncio.ensure_future(middleware(scope(), first.receive, first.send))
        await asyncio.sleep(0.05)
        await middleware(scope(), second.receive, second.send)
        release.set()
        await running
        return first, second

    first, second = asyncio.run(both())
    assert (first.status, second.status) == (200, 429)
    assert (b"retry-after", b"1") in second.sent[0]["headers"]
