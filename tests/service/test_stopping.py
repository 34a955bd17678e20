"""SIGTERM to `steval serve` with clients at work: what was accepted is finished, newcomers are refused, nobody holds the end."""

import json
import signal
import socket
import threading

import httpx
import pytest

from support.service_models import served_process, wait_until_ready
from support.waiting import wait_until

REQUEST = {"perturbations": ["STAT1"], "cells": 20, "seed": 3}


@pytest.mark.slow
def test_sigterm_under_load_finishes_what_was_accepted(tiny_checkpoint):
    body = {"perturbations": ["STAT1", "TET1"], "cells": 1000}
    answers: list[int] = []
    broken: list[str] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                try:
                    answers.append(client.post("/predict", json=body).status_code)
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    broken.append(type(error).__name__)
                    return

    with served_process(str(tiny_checkpoint)) as (url, process):
        wait_until_ready(url)
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) >= len(threads))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        stop.set()
        for thread in threads:
            thread.join()
    assert answers.count(200) >= 8
    assert set(answers) <= {200, 503}
    # A request that comes on a connection kept alive just as it is closed was never accepted; httpx reports it as lost.
    assert set(broken) <= {"RemoteProtocolError", "ReadError"}
    accepted = sum('"status": 200' in line and '"/predict"' in line for line in process.log)
    assert accepted == answers.count(200), "an accepted request was lost"


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def head(body: bytes, *lines: str) -> bytes:
    """Of a POST of `body` to /predict."""
    common = ("POST /predict HTTP/1.1", "host: 127.0.0.1", "content-type: application/json")
    return "\r\n".join((*common, *lines, f"content-length: {len(body)}", "", "")).encode()


@pytest.mark.slow
def test_while_it_stops_newcomers_are_refused_and_the_last_answer_ends_its_connection(tiny_checkpoint):
    body = json.dumps(REQUEST).encode()
    with served_process(str(tiny_checkpoint), "--workers", "2") as (url, process):
        wait_until_ready(url)
        port = httpx.URL(url).port
        with socket.create_connection(("127.0.0.1", port), timeout=60) as accepted:
            accepted.sendall(head(body, "expect: 100-continue"))
            assert accepted.recv(1000).startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(port), 20)  # the accepted request waits for its body for longer
            assert process.poll() is None
            accepted.sendall(body)
            received = b""
            while part := accepted.recv(1 << 20):
                received += part
        assert process.wait(60) == 0
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in received.lower()


@pytest.mark.slow
def test_a_client_that_never_reads_does_not_hold_the_end(tiny_checkpoint):
    names = ["STAT1", "TET1", "SRC", "MED12"]
    body = json.dumps({"perturbations": names, "cells": 8000, "output": "cells"}).encode()  # 17 MB: the kernel takes 4
    limits = {"STEVAL_SEND_TIMEOUT": "2", "STEVAL_MAX_CELLS": "32000", "STEVAL_MAX_QUEUED_CELLS": "32000"}
    with served_process(str(tiny_checkpoint), **limits) as (url, process):
        wait_until_ready(url)
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", httpx.URL(url).port))
            one.sendall(head(body, "accept: application/vnd.apache.arrow.stream") + body)
            assert one.recv(15) == b"HTTP/1.1 200 OK"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0  # long before --shutdown-seconds
    entries = [json.loads(line) for line in process.log if line.startswith("{")]
    (warning,) = [entry for entry in entries if entry["level"] in ("warning", "error")]
    assert "its client does not read" in warning["message"]
    (answered,) = [entry for entry in entries if entry.get("route") == "/predict"]
    assert warning["request_id"] == answered["request_id"]
    assert not [entry for entry in entries if "exception" in entry]
