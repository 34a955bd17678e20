"""Goodput of the service under greedy clients, and what a polite one beside them gets.

    python benchmarks/serve_overload.py [--seconds 20] [--clients 1,3,8,40,100] [--genes 2000] [--cells 4096] [--hidden 128]

Greedy clients share one key, ask for as many cells as a request may have, and ask again at once whatever the answer (they do
not heed Retry-After). A polite client with a key of its own asks for one perturbation a second and heeds it. For each number
of greedy clients: large requests finished in the time, their cells per second, other answers, and the polite client's answers
with the median and the longest time. Nothing leaves the loopback; the run takes the seconds times the numbers of clients, and a
start.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from serve import NUM_PERTURBATIONS, Service, write_checkpoint

from steval.service.http.keys import add_key

PER_PERTURBATION = 64


def main() -> None:
    options = _options()
    print(
        f"{os.cpu_count()} cores, {options.threads} threads, {options.genes} genes, requests of {options.cells} cells"
    )
    with tempfile.TemporaryDirectory() as directory:
        path, keys = Path(directory) / "random.safetensors", Path(directory) / "keys.txt"
        write_checkpoint(path, options)
        greedy, polite = add_key(keys, "greedy"), add_key(keys, "polite")
        service = Service(path, options.threads, "--api-key-file", str(keys))
        try:
            for number in map(int, options.clients.split(",")):
                _measure(service.port, number, options, greedy, polite)
        finally:
            service.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", default="1,3,8,40,100")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--cells", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def _measure(port: int, number: int, options: argparse.Namespace, greedy: str, polite: str) -> None:
    deadline = time.monotonic() + options.seconds
    names = [f"P{position}" for position in range(min(NUM_PERTURBATIONS, options.cells // PER_PERTURBATION))]
    large = {"perturbations": names, "cells": options.cells // len(names)}
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    answers: Counter[int] = Counter()

    def be_greedy() -> None:
        while time.monotonic() < deadline:
            status, _ = _ask(port, large, greedy)
            if time.monotonic() <= deadline:
                statuses[status] += 1

    def be_polite() -> None:
        while time.monotonic() < deadline:
            began = time.monotonic()
            status, after = _ask(port, {"perturbations": ["P0"], "cells": PER_PERTURBATION}, polite)
            answers[status] += 1
            waits.append(time.monotonic() - began)
            time.sleep(max(1.0, after))

    threads = [threading.Thread(target=be_greedy) for _ in range(number)] + [threading.Thread(target=be_polite)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = statuses[200] * options.cells / options.seconds
    others = {status: count for status, count in statuses.items() if status != 200}
    print(
        f"{number:4} greedy: {statuses[200]:4} large requests in {options.seconds:.0f} s ({rate:7.0f} cells/s), others {others}; "
        f"polite: {dict(answers)}, median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s",
        flush=True,
    )


def _ask(port: int, body: dict, key: str) -> tuple[int, float]:
    """Status (0: none came) and Retry-After."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/predict", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, float(answer.headers.get("Retry-After", 0))
    except OSError:
        return 0, 1.0
    finally:
        connection.close()


if __name__ == "__main__":
    main()
