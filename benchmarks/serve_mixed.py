"""Everything at once against one service: predictions, cells, jobs of both kinds, wrong requests, clients that vanish; two swaps
of a model, a broken file in its place, and a worker killed by SIGKILL.

    python benchmarks/serve_mixed.py [--seconds 600] [--genes 500] [--hidden 64] [--ready-seconds 30] [--most-growth 5]

Ends with exit code 1 where one of these does not hold: no 5xx but 503 with Retry-After; no connection error but while the
killed worker is replaced; ready again within `--ready-seconds`; every answer of a model that was there; every accepted job
done; from the first fifth of the time to the kill the worker's memory grew by no more than `--most-growth` percent (looked at
from five minutes on: what is shorter has hardly warmed up). Prints how many answers of which kind there were.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
from serve import NUM_PERTURBATIONS, Service, write_checkpoint

from steval.checkpoints.store import load_checkpoint
from steval.data.cells.cellfile import write_anndata
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.synthetic import generate
from steval.service.forms import ARROW, H5AD

JOB_PAUSE = 3.0
WARM_SECONDS = 300.0
"""Of a run whose first fifth is a warm-up."""
PATIENCE = 120.0


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = [directory / f"{seed}.safetensors" for seed in range(4)]
        for seed, path in enumerate(made):
            write_checkpoint(path, options, seed)
        models = directory / "models"
        models.mkdir()
        shutil.copy(made[1], models / "swapped.safetensors")
        places = ("--models", str(models), "--job-dir", str(directory / "jobs"))
        service = Service(made[0], options.threads, *places)
        run = Run(service, models / "swapped.safetensors", made, scored_cells(directory), options)
        try:
            problems = run.go()
        finally:
            service.stop()
    for problem in problems[:20]:
        print("PROBLEM:", problem)
    print(f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


def scored_cells(directory: Path) -> dict[str, Path]:
    """Two h5ad files under the names that `POST /score` has for them: the halves of one screen."""
    cells = generate(num_genes=300, num_perturbations=6, cells_per_perturbation=80, num_controls=160, seed=0).cells
    cells.X = lognorm(cells.X, 1e4)
    cells.uns[KEY] = steval_record(made_by=Path(__file__).name, scale="lognorm", target_sum=1e4, columns=Columns())
    files = {name: directory / f"{name}.h5ad" for name in ("predictions", "real")}
    for half, path in enumerate(files.values()):
        write_anndata(cells[half::2].copy(), path)
    return files


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ready-seconds", type=float, default=30.0)
    parser.add_argument("--most-growth", type=float, default=5.0, help="percent of the worker's memory")
    return parser.parse_args()


class Run:
    """One run: its clients, what happens to the service meanwhile, and what went wrong."""

    def __init__(
        self, service: Service, path: Path, made: list[Path], scored: dict[str, Path], options: argparse.Namespace
    ):
        self._service, self._path, self._made, self._scored = service, path, made, scored
        self._seconds, self._ready_seconds = options.seconds, options.ready_seconds
        self._most_growth = options.most_growth
        self._digests = {load_checkpoint(one).digest for one in made}
        self._answers: Counter[str] = Counter()
        self._problems: list[str] = []
        self._jobs: list[str] = []
        """Paths of accepted ones."""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._replacing = threading.Event()
        """Set from the kill until the service is ready again: requests may end in connection errors."""

    def go(self) -> list[str]:
        """Run everything; the problems there were."""
        work = [self._predict, self._predict, self._cells, self._wrong, self._vanish, self._submit, self._score]
        threads = [threading.Thread(target=self._repeat, args=(one, number)) for number, one in enumerate(work)]
        for thread in threads:
            thread.start()
        try:
            self._happen()
        finally:
            self._done.set()
            for thread in threads:
                thread.join(PATIENCE)
        self._settle_jobs()
        for kind, count in sorted(self._answers.items()):
            print(f"{count:7} {kind}")
        return self._problems

    def _happen(self) -> None:
        """Two swaps, a broken file between them, a kill; each at its part of the time."""
        began = time.monotonic()

        def until(part: float) -> None:
            time.sleep(max(0.0, began + part * self._seconds - time.monotonic()))

        until(0.2)
        warm = self._service.memory()
        self._put(2)
        until(0.35)
        self._path.write_bytes(self._made[3].read_bytes()[:-5000])
        until(0.5)
        self._put(3)
        until(0.7)
        now = self._service.memory()
        print(f"memory of the worker: {warm:.0f} MB after {0.2 * self._seconds:.0f} s, {now:.0f} MB before the kill")
        growth = 100 * (now / warm - 1)
        if self._seconds >= WARM_SECONDS and growth > self._most_growth:
            self._problem(f"the worker's memory grew by {growth:.1f} %")
        self._kill()
        until(1.0)

    def _put(self, number: int) -> None:
        beside = self._path.with_name(".beside")
        shutil.copy(self._made[number], beside)
        beside.replace(self._path)
        digest = load_checkpoint(self._made[number]).digest
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            listed = httpx.get(self._service.url + "/models", timeout=PATIENCE).json()["models"]
            if digest in [one["checkpoint"] for one in listed]:
                print(f"swapped in {time.monotonic() + PATIENCE - deadline:.1f} s")
                return
            time.sleep(0.2)
        self._problem("a good file did not take its place")

    def _kill(self) -> None:
        self._replacing.set()
        os.kill(int(self._service.worker), signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self._service.url + "/readyz", timeout=5).status_code == 200:
                    break
            time.sleep(0.1)
        seconds = time.monotonic() - began
        print(f"ready {seconds:.1f} s after the kill")
        if seconds > self._ready_seconds:
            self._problem(f"ready only {seconds:.1f} s after the kill")
        time.sleep(1.0)
        self._replacing.clear()

    def _repeat(self, work: Callable[[httpx.Client, random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        while not self._done.is_set():
            try:
                with httpx.Client(base_url=self._service.url, timeout=PATIENCE) as client:
                    while not self._done.is_set():
                        work(client, rng)
            except httpx.TransportError as error:
                self._count("connection error")
                if not self._replacing.is_set():
                    self._problem(f"connection error: {error!r}")
                time.sleep(0.2)

    def _predict(self, client: httpx.Client, rng: random.Random) -> None:
        body = {"perturbations": self._names(rng, 1), "cells": rng.choice((1, 16, 64)), "seed": rng.randrange(10**6)}
        model = rng.choice((None, "swapped"))
        answer = client.post("/predict", json=body | ({"model": model} if model else {}))
        self._judge(f"means of {model or 'the default'}", answer, 200)
        if answer.status_code == 200 and answer.json()["checkpoint"] not in self._digests:
            self._problem("an answer of a model that there never was")

    def _cells(self, client: httpx.Client, rng: random.Random) -> None:
        body = {"perturbations": self._names(rng, 3), "cells": 64, "output": "cells", "seed": rng.randrange(10**6)}
        form = rng.choice((ARROW, H5AD))
        self._judge(
            f"cells as {form.split('.')[-1]}", client.post("/predict", json=body, headers={"accept": form}), 200
        )
        time.sleep(0.1)

    def _wrong(self, client: httpx.Client, rng: random.Random) -> None:
        content, expected = rng.choice(
            [
                ("{", 400),
                (json.dumps({"perturbations": ["NOBODY"]}), 404),
                (json.dumps({"perturbations": ["P1"], "model": "nobody"}), 404),
                (json.dumps({"perturbations": ["P1"], "cells": 10**6}), 413),
                (json.dumps({"perturbations": []}), 422),
            ]
        )
        answer = client.post("/predict", content=content, headers={"content-type": "application/json"})
        self._judge("wrong", answer, expected)
        time.sleep(0.05)

    def _vanish(self, client: httpx.Client, rng: random.Random) -> None:
        body = json.dumps({"perturbations": self._names(rng, 8), "cells": 100, "seed": rng.randrange(10**6)}).encode()
        head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._service.port), timeout=10) as one,
        ):
            one.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(rng.random() / 10)
        self._count("vanished")
        time.sleep(0.1)

    def _submit(self, client: httpx.Client, rng: random.Random) -> None:
        answer = client.post(
            "/predictions",
            json={"perturbations": self._names(rng, 5), "cells": 50, "form": rng.choice(("h5ad", "arrow"))},
        )
        self._judge("jobs", answer, 202)
        self._accept("/predictions", answer)

    def _score(self, client: httpx.Client, rng: random.Random) -> None:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(path.open("rb")) for name, path in self._scored.items()}
            form = {"profile": "minimal", "seed": rng.randrange(10**6)}
            answer = client.post("/score", data=form, files=files)
        self._judge("scoring jobs", answer, 202)
        self._accept("/score", answer)

    def _accept(self, route: str, answer: httpx.Response) -> None:
        if answer.status_code == 202:
            self._jobs.append(f"{route}/{answer.json()['id']}")
        self._done.wait(max(JOB_PAUSE, float(answer.headers.get("retry-after", 0))))

    def _names(self, rng: random.Random, number: int) -> list[str]:
        return [f"P{one}" for one in rng.sample(range(NUM_PERTURBATIONS), number)]

    def _judge(self, kind: str, answer: httpx.Response, expected: int) -> None:
        self._count(f"{kind}: {answer.status_code}")
        patient = answer.status_code in (429, 503) and "retry-after" in answer.headers
        if answer.status_code != expected and not patient:
            self._problem(f"{kind}: {answer.status_code} {answer.text[:300]}")

    def _settle_jobs(self) -> None:
        """Wait for every job that was accepted."""
        deadline = time.monotonic() + PATIENCE + 20 * len(self._jobs)
        states: Counter[tuple[str, str]] = Counter()
        with httpx.Client(base_url=self._service.url, timeout=PATIENCE) as client:
            for job in self._jobs:
                state = "running"
                while state in ("queued", "running") and time.monotonic() < deadline:
                    answer = client.get(job)
                    state = answer.json()["state"] if answer.status_code == 200 else str(answer.status_code)
                    time.sleep(0.2)
                states[job.rpartition("/")[0], state] += 1
        for (route, state), count in sorted(states.items()):
            print(f"{count:7} jobs of {route}: {state}")
            if state != "done":
                self._problem(f"{count} accepted jobs of {route} that are not done: {state}")

    def _count(self, kind: str) -> None:
        with self._lock:
            self._answers[kind] += 1

    def _problem(self, text: str) -> None:
        with self._lock:
            self._problems.append(text)


if __name__ == "__main__":
    main()
