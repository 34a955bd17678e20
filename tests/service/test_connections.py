"""Connections that send nothing, half a header, or never end: closed in time, and never in the way of others."""

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

from steval.service.http.connections import limited
from support.waiting import wait_until

HEADER_SECONDS = 0.4
MOST = 6


at_work: list[str] = []
"""Paths of requests that have come to `app`."""


async def app(scope, receive, send):
    """Answers; `/slow` after a while, `/refuse` without reading the body, `/large` at length."""
    at_work.append(scope["path"])
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEADER_SECONDS)
    body = b"x" * (3_000_000 if scope["path"] == "/large" else 2)
    status = 401 if scope["path"] == "/refuse" else 200
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    protocol = limited(MOST, HEADER_SECONDS)
    config = uvicorn.Config(app, port=0, log_config=None, http=protocol, lifespan="off", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


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
        time.sleep(2 * HEADER_SECONDS)
        received = 0
        while part := one.recv(1 << 20):
            received += len(part)
    assert received > 3_000_000


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
        "print(limited(1000, 1).max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cases = {256: "128 256"} | ({2000: "1000 1128"} if hard == resource.RLIM_INFINITY or hard >= 2000 else {})
    for allowed, expected in cases.items():
        command = [sys.executable, "-c", code, str(allowed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == expected.split()


def test_the_service_runs_with_the_limits(service_url):
    protocol = uvicorn.config.HTTP_PROTOCOLS[uvicorn.Config(app).http]
    assert (protocol.max_connections, protocol.header_seconds) == (1024, 10.0)
