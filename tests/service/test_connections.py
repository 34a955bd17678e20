"""Connections that send nothing, half a header, never end or never read: closed in time, and never in the way of others."""

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn
import uvicorn.config

from steval.service.http.body import BodyMiddleware
from steval.service.http.connections import limited
from steval.service.routes import ROUTES
from steval.service.settings import ServiceSettings
from support.waiting import wait_until

HEADER_SECONDS = 0.4
SEND_SECONDS = 0.8
MOST = 6


at_work: list[str] = []
"""Paths of requests that have come to `app`."""
release = threading.Event()
UNREAD = 30_000_000
"""Bytes of a large answer: more than the kernel keeps for a client that does not read."""


async def app(scope, receive, send):
    """Answers; `/slow` after a while, `/held` once `release` is set, `/refuse` without reading the body, `/large` at length.

    `/broken` fails in the midst of a large answer.
    """
    at_work.append(scope["path"])
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEADER_SECONDS)
    while scope["path"] == "/held" and not release.is_set():
        await asyncio.sleep(0.02)
    body = b"x" * (UNREAD if scope["path"] in ("/large", "/broken") else 2)
    status = 401 if scope["path"] == "/refuse" else 200
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["path"] == "/broken":
        await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
        raise ValueError("broken")
    await send({"type": "http.response.body", "body": body})


async def patient(scope, receive, send):
    """A large answer in pieces, through the middleware that has the time limit."""
    settings = ServiceSettings(send_timeout=SEND_SECONDS)
    await BodyMiddleware(pieces, routes=ROUTES, settings=settings)(scope, receive, send)


async def pieces(scope, receive, send):
    """The large answer."""
    at_work.append(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(UNREAD // 100_000):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def serving(application=app, keep_alive: int = 60):
    """The application behind the limits; yields uvicorn's server and its thread, and stops them."""
    protocol = limited(MOST, HEADER_SECONDS, SEND_SECONDS)
    config = uvicorn.Config(
        application, port=0, log_config=None, http=protocol, lifespan="off", timeout_keep_alive=keep_alive
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield server, thread
    finally:
        server.should_exit = True
        thread.join(10)


def port_of(server: uvicorn.Server) -> int:
    return server.servers[0].sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def port():
    with serving() as (server, _):
        yield port_of(server)


@contextlib.contextmanager
def connected(port: int, first: bytes = b""):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(first)
        yield one


def answer(port: int, path: str = "/") -> bytes:
    with connected(port, f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode()) as one:
        received = b""
        while part := one.recv(65536):
            received += part
    return received


@pytest.mark.parametrize(
    "first",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n"],
    ids=["nothing", "half a line", "half a header"],
)
def test_what_never_becomes_a_request_is_closed(port, first):
    with connected(port, first) as one:
        assert one.recv(100) == b""


def trickle(one: socket.socket, piece: bytes) -> None:
    for _ in range(200):
        one.sendall(piece)
        time.sleep(HEADER_SECONDS / 10)


def test_a_header_that_trickles_is_closed(port):
    with connected(port, b"GET / HTTP/1.1\r\nhost: a\r\n") as one, pytest.raises(OSError):
        trickle(one, b"x-a: b\r\n")


def test_a_body_that_trickles_on_after_its_answer_is_closed(port):
    head = b"POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
    with connected(port, head) as one:
        assert b" 401 " in one.recv(1000)
        with pytest.raises(OSError):
            trickle(one, b"x")


def test_an_idle_connection_is_closed_and_a_slow_answer_is_not_cut(port):
    with connected(port, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n") as one:
        assert b" 200 " in one.recv(1000)
        while one.recv(100):
            pass


def test_a_reader_who_takes_his_time_gets_the_whole_answer(port):
    with connected(port, b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n") as one:
        time.sleep(1.5 * HEADER_SECONDS)
        received = 0
        while part := one.recv(1 << 20, socket.MSG_WAITALL):
            received += len(part)
            time.sleep(SEND_SECONDS / 8)
    assert received > UNREAD


def request(path: str, *, method: str = "GET") -> bytes:
    body = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}" if method == "POST" else "\r\n"
    return f"{method} {path} HTTP/1.1\r\nhost: a\r\n{body}".encode()


UNREAD_WORDS = "its client does not read"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("is_stopping", [False, True], ids=["serving", "stopping"])
def test_a_client_that_stops_reading_is_reset_with_one_warning_and_no_traceback(caplog, method, is_stopping):
    with serving(patient) as (server, thread):
        with connected(port_of(server), request("/predict" if method == "POST" else "/jobs", method=method)) as one:
            wait_until(lambda: any(each.is_busy for each in server.server_state.connections))
            if is_stopping:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()
            wait_until(lambda: not server.server_state.connections, 30)
            with pytest.raises(ConnectionResetError):
                while one.recv(1 << 20):
                    pass
        wait_until(lambda: not server.server_state.tasks)
    (line,) = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert UNREAD_WORDS in line.getMessage()
    assert line.exc_info is None


@pytest.mark.parametrize(
    ("path", "ends_by"),
    [
        *(("/large", one) for one in ("the header's deadline", "keep-alive", "the answer", "shutdown")),
        ("/broken", "an error"),
    ],
)
def test_what_is_closed_is_not_kept_for_a_client_that_does_not_read(caplog, path, ends_by):
    """Whoever closes it: the whole answer was written, and its sender has long gone on."""
    with serving(keep_alive=0 if ends_by == "keep-alive" else 60) as (server, thread):
        first = request(path)
        if ends_by == "the answer":
            first = first.replace(b"host: a", b"host: a\r\nconnection: close")
        at_work.clear()
        with connected(port_of(server), first):
            wait_until(lambda: at_work)
            if ends_by == "shutdown":
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()
            wait_until(lambda: not server.server_state.connections, 30)
    assert sum(UNREAD_WORDS in record.getMessage() for record in caplog.records) == 1


def test_answers_during_shutdown_say_that_the_connection_ends():
    with serving() as (server, thread):
        release.clear()
        at_work.clear()
        with connected(port_of(server), request("/held")) as one:
            wait_until(lambda: at_work)
            server.should_exit = True
            (protocol,) = server.server_state.connections
            wait_until(lambda: not protocol.cycle.keep_alive)
            release.set()
            received = b""
            while part := one.recv(1000):
                received += part
        thread.join(30)
    assert received.lower().count(b"connection: close") == 1
    assert received.endswith(b"xx")


def test_those_that_do_nothing_make_room(port):
    with contextlib.ExitStack() as stack:
        for _ in range(5 * MOST):
            stack.enter_context(connected(port, b"GET / HT"))
        for _ in range(3):
            assert b" 200 " in answer(port)


def test_those_at_work_are_not_cut_for_newcomers(port):
    answers = []
    at_work.clear()
    threads = [threading.Thread(target=lambda: answers.append(answer(port, "/slow"))) for _ in range(MOST)]
    for thread in threads:
        thread.start()
    wait_until(lambda: at_work.count("/slow") == MOST)
    for _ in range(MOST):
        with contextlib.suppress(OSError):
            answer(port)
    for thread in threads:
        thread.join()
    assert len(answers) == MOST
    assert all(b" 200 " in one for one in answers)


def test_the_limit_fits_the_files_that_the_process_may_open():
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))\n"
        "from steval.service.http.connections import limited\n"
        "print(limited(1000, 1, 1).max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cases = {256: "128 256"} | ({2000: "1000 1128"} if hard == resource.RLIM_INFINITY or hard >= 2000 else {})
    for allowed, expected in cases.items():
        command = [sys.executable, "-c", code, str(allowed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == expected.split()


def test_the_service_runs_with_the_limits(service_url):
    protocol = uvicorn.config.HTTP_PROTOCOLS[uvicorn.Config(app).http]
    assert (protocol.max_connections, protocol.header_seconds, protocol.send_seconds) == (1024, 10.0, 60.0)
