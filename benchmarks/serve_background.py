"""What one who waits for an answer notices of long predictions in the background.

    python benchmarks/serve_background.py [--seconds 30] [--genes 2000] [--hidden 128] [--cells 64] [--job-cells 500]

A client asks for one perturbation after another and pauses between, like a person at the page, for `--seconds` at a time: alone
and while one key and four keys have a whole screen predicted by `POST /predictions` again and again, in turns. Prints the client's
median and 95 % and how many cells the jobs predicted a second. Jobs run one at a time, at the lowest priority: what is left of
the difference is caches, memory bandwidth and the batch that is under way.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from serve import NUM_PERTURBATIONS, Service, write_checkpoint

from steval.service.http.keys import add_key

KEYS = (0, 1, 4)
"""With jobs in the background."""
ROUNDS = 3
PAUSE = 0.2
"""Between two requests of the client."""
POLL = 0.1


@dataclass
class Seen:
    """Of one number of keys, in all rounds."""

    seconds: list[float] = field(default_factory=list)
    """Of each request."""
    job_cells: int = 0
    time: float = 0.0


def main() -> None:
    options = _options()
    print(
        f"{os.cpu_count()} cores, {options.threads} threads, {options.genes} genes, requests of {options.cells} cells"
    )
    with tempfile.TemporaryDirectory() as name:
        path, keys = Path(name) / "random.safetensors", Path(name) / "keys.txt"
        write_checkpoint(path, options)
        asking, *others = [add_key(keys, f"key{number}") for number in range(1 + max(KEYS))]
        service = Service(path, options.threads, "--api-key-file", str(keys), "--job-dir", str(Path(name) / "jobs"))
        seen = {number: Seen() for number in KEYS}
        try:
            _ask(service.url, asking, options, 2.0)
            for _ in range(ROUNDS):
                for number, one in seen.items():
                    _measure(service.url, asking, others[:number], options, one)
        finally:
            service.stop()
    for number, one in seen.items():
        times = sorted(one.seconds)
        p50, p95 = 1e3 * statistics.median(times), 1e3 * times[int(0.95 * len(times))]
        rate = one.job_cells / one.time
        print(
            f"{number} keys with jobs: {len(times):4} answers, p50 {p50:7.1f} ms, p95 {p95:7.1f} ms; jobs {rate:7.0f} cells/s"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of keys")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--job-cells", type=int, default=500, help="of each perturbation of a job")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def _measure(url: str, asking: str, others: list[str], options: argparse.Namespace, seen: Seen) -> None:
    done: list[int] = []
    stop = threading.Event()
    threads = [threading.Thread(target=_keep_busy, args=(url, key, options, done, stop)) for key in others]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    seen.seconds += _ask(url, asking, options, options.seconds / ROUNDS)
    stop.set()
    for thread in threads:
        thread.join()
    seen.job_cells += sum(done)
    seen.time += time.monotonic() - began


def _ask(url: str, key: str, options: argparse.Namespace, seconds: float) -> list[float]:
    times = []
    deadline = time.monotonic() + seconds
    with _client(url, key) as client:
        while time.monotonic() < deadline:
            body = {"perturbations": [f"P{len(times) % NUM_PERTURBATIONS}"], "cells": options.cells, "seed": len(times)}
            began = time.perf_counter()
            client.post("/predict", json=body).raise_for_status()
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE)
    return times


def _keep_busy(url: str, key: str, options: argparse.Namespace, done: list[int], stop: threading.Event) -> None:
    """A whole screen as a job, again and again; the cells that were predicted, the last job's too."""
    names = [f"P{number}" for number in range(NUM_PERTURBATIONS)]
    with _client(url, key) as client:
        while not stop.is_set():
            answer = client.post("/predictions", json={"perturbations": names, "cells": options.job_cells})
            answer.raise_for_status()
            address = f"/predictions/{answer.json()['id']}"
            while (job := client.get(address).json())["state"] in ("queued", "running") and not stop.is_set():
                time.sleep(POLL)
            done.append(job["cells_done"])
            while client.delete(address).status_code == 202:
                time.sleep(POLL)


@contextmanager
def _client(url: str, key: str) -> Generator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=300) as client:
        yield client


if __name__ == "__main__":
    main()
