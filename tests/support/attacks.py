"""What a service meets from those who wish it ill or know no better: each attack is a function of a port, a key and a generator."""

import json
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import httpx

Attack = Callable[[int, str, random.Random, Path], list[int]]
"""Answers with the statuses that it got; an answer that never comes is an `httpx.HTTPError` or an `OSError`."""

BODIES = (
    b"", b"{", b"[]", b"null", b'{"perturbations": null}', b'{"perturbations": ["STAT1"], "cells": 1e20}', b'{"cells": NaN}',
    b'{"perturbations": ["STAT1"], "cells": -1}', b'{"perturbations": ["STAT1"], "seed": 99999999999999999999}',
    b'{"perturbations": ["STAT1"], "cells": Infinity}', b'{"perturbations": [["STAT1"]]}', b'{"perturbations": [{"a": 1}]}',
    b'{"perturbations": ["' + b"x" * 100_000 + b'"]}', b"[" * 50_000, b'{"a":' * 20_000, b"\xff\xfe\x00",
    b'{"perturbations": ["\\ud800"]}',
    json.dumps({"perturbations": [f"unknown{number}" for number in range(4000)]}).encode(),
    b'{"perturbations": ["STAT1"], "typo": 1}',
    json.dumps({"perturbations": ["STAT1"], "cells": 2000}).encode(), b'{"perturbations": ["STAT1"], "cell_type": "\\u0000"}',
)  # fmt: skip
PATHS = (
    "/predict%0A", "/predict/", "//predict", "/PREDICT", "/../etc/passwd", "/page/../../app.py", "/score/../predict",
    "/score/0", "/score/%00",
    "/score/" + "f" * 64, "/perturbations?limit=-1", "/perturbations?limit=²", "/perturbations?offset=" + "9" * 30,
    "/metrics%20", "/docs.json", "/x" * 2000,
)  # fmt: skip


def _client(port: int, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def bodies(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Requests that are none."""
    with _client(port, key) as client:
        kinds = ["application/json", "text/plain", "application/json; charset=utf-16", "multipart/form-data", ""]
        return [
            client.post(
                rng.choice(["/predict", "/score"]),
                content=rng.choice(BODIES),
                headers={"Content-Type": rng.choice(kinds)},
            ).status_code
            for _ in range(8)
        ]


def paths(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Addresses that are none, and methods that no address takes."""
    with _client(port, key) as client:
        methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]
        return [client.request(rng.choice(methods), rng.choice(PATHS)).status_code for _ in range(8)]


def strangers(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Without a key, with a wrong one, through proxies, under other names."""
    odd = [
        {"Authorization": "Bearer " + "x" * 5000}, {"Authorization": "Basic eDp5"}, {"Host": "evil.example"},
        {"X-Forwarded-For": "1.2.3.4"},
        {"Via": "1.1 x"}, {"Origin": "http://evil.example"}, {"Cookie": "a=" + "b" * 4000}, {"Accept": "text/html;q=x"},
        {"Accept-Encoding": "zstd;q=nan"}, {"Content-Length": "-1"}, {"Transfer-Encoding": "chunked"},
    ]  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        return [
            client.get(rng.choice(["/model", "/metrics", "/perturbations"]), headers=rng.choice(odd)).status_code
            for _ in range(6)
        ]


def half_requests(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Connections that send a part, or nothing, and stay or go."""
    starts = [
        b"",
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{",
        b"GET / HT",
        b"\x16\x03\x01\x02\x00\x01\x00",
        bytes(300),
    ]
    held = []
    for _ in range(12):
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        one.sendall(rng.choice(starts))
        if rng.random() < 0.5:  # a reset in place of an end
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        held.append(one)
    for one in held:
        one.close()
    return []


def leavers(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Clients that ask for much and leave before, or in the middle of, the answer."""
    body = json.dumps({"perturbations": ["STAT1", "SRC", "TET1"], "cells": 600}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    accept = rng.choice(["application/json", "application/vnd.apache.arrow.stream", "application/x-hdf5"])
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(f"{head}Accept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            if rng.random() < 0.5:
                one.recv(rng.choice([1, 500]))
    return []


def uploads(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """Files to be scored that are damaged or none, jobs that are asked for and thrown away."""
    content = bytearray(cells.read_bytes())
    for _ in range(rng.choice([0, 5, 50])):
        content[rng.randrange(len(content) if rng.random() < 0.5 else 4096)] ^= 1 << rng.randrange(8)
    sent = rng.choice(
        [bytes(content), bytes(content[: rng.randrange(len(content))]), b"\x89HDF\r\n\x1a\n" + rng.randbytes(500), b""]
    )
    with _client(port, key) as client:
        files = {
            "preds": ("preds.h5ad", sent, "application/x-hdf5"),
            "real": ("../../real.h5ad", sent, "application/x-hdf5"),
        }
        fields = {"profile": rng.choice(["vcc", "minimal", "no such", "\x00"])}
        answer = client.post("/score", files=files, data=fields)
        statuses = [answer.status_code]
        if answer.status_code == 202 and rng.random() < 0.7:
            statuses.append(client.delete(f"/score/{answer.json()['id']}").status_code)
        return statuses


def large(port: int, key: str, rng: random.Random, cells: Path) -> list[int]:
    """As much as may be asked for, again and again."""
    with _client(port, key) as client:
        asked = {
            "perturbations": ["STAT1", "SRC", "TET1", "MED12"],
            "cells": 500,
            "output": rng.choice(["cells", "mean"]),
        }
        return [client.post("/predict", json=asked).status_code for _ in range(3)]


ATTACKS: tuple[Attack, ...] = (bodies, paths, strangers, half_requests, leavers, uploads, large)
