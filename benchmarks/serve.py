"""Requests per second and latency of the service at 1, 8 and 32 clients, beside in-process prediction of the same sets.

    python benchmarks/serve.py [--seconds 20] [--genes 18080] [--hidden 672] [--cells 64] [--idle SECONDS] [--soak SECONDS]

A random network (state_sm's shape: 159 M parameters at 18,080 genes) is written, served by `steval serve` on 127.0.0.1 and
asked for one perturbation a request, as a JSON mean profile. In-process numbers come from `predicted_means` in this process with
the same threads, batch size and seeds: many perturbations at once for throughput, one at a time for latency; the service and
this process take turns.

The clients are threads of this process, which shares the service's cores, with a connection each by `http.client`. An answer is
received to its last byte and not decoded. httpx's asynchronous client, used here before, takes 7 ms of processor time for
the 620 KB of an answer, `http.client` 0.7 ms: that is the client's cost, not the service's. The overhead of one request is
measured in turns of a few requests each, because the machine's speed drifts by more than it. The first of a turn is left out: it
comes after an idle moment, which costs both ways of asking some milliseconds more; `--idle` prints that too.

`--soak` asks for everything the service makes, errors too, and prints its memory over time.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import scipy.sparse as sp
import torch

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import ControlSet, load_checkpoint, save_checkpoint
from steval.data.columns import Columns
from steval.model.config import ModelConfig
from steval.model.network import StateTransition
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.means import predicted_means
from steval.predictor.requests import request_names
from steval.service.forms import ARROW, H5AD, JSON

NUM_PERTURBATIONS = 200
NUM_CONTROLS = 512
BATCH_CELLS = 512
CLIENTS = (1, 8, 32)
ROUNDS = 3
TURNS = 5
TURN = 9
"""Single requests of a turn, the first of which is not counted."""
PAUSE = 0.3
"""Before each turn: threads of OpenMP that still spin for the other process have gone to sleep."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.safetensors"
        write_checkpoint(path, options)
        service = Service(path, options.threads)
        try:
            if options.soak:
                asyncio.run(_soak(service, options))
            else:
                _compare(service, path, options)
        finally:
            service.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients")
    parser.add_argument("--genes", type=int, default=18_080)
    parser.add_argument("--hidden", type=int, default=672)
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--idle", type=float, default=0.0, help="seconds: single requests after so long without any, too"
    )
    parser.add_argument("--soak", type=float, default=0.0)
    return parser.parse_args()


def write_checkpoint(path: Path, options: argparse.Namespace, seed: int = 0) -> None:
    hidden, genes = options.hidden, options.genes
    backbone = {"kind": "llama", "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_layers": 4}
    backbone |= {"num_heads": 8, "num_key_value_heads": 8, "head_dim": hidden // 8}
    sizes = {"input_dim": genes, "output_dim": genes, "pert_dim": NUM_PERTURBATIONS + 1, "hidden_dim": hidden}
    config = ModelConfig.parse({**sizes, "backbone": backbone, "cell_set_size": 64})
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(0)
    names = tuple(f"GENE{number}" for number in range(genes))
    cells = sp.random_array((NUM_CONTROLS, genes), density=0.2, rng=rng, dtype=np.float32, format="csr")
    entries = [*(f"P{number}" for number in range(NUM_PERTURBATIONS)), "non-targeting"]
    manifest = Manifest(
        made_by="benchmarks/serve.py", model=config, input_genes=names, output_genes=names, scale="lognorm", target_sum=1e4,
        perturbations=tuple(PerturbationEntry(name=name) for name in entries), columns=Columns(), cell_types=("A",), batches=("b",),
    )  # fmt: skip
    labels = np.array(["A"] * NUM_CONTROLS), np.array(["b"] * NUM_CONTROLS)
    controls = ControlSet(sp.csr_matrix(cells), *labels)
    save_checkpoint(
        path,
        manifest=manifest,
        weights=network.state_dict(),
        features=torch.eye(NUM_PERTURBATIONS + 1),
        controls=controls,
    )


class Service:
    """`steval serve` as a process."""

    def __init__(self, checkpoint: Path, threads: int, *arguments: str):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "STEVAL_BATCH_CELLS": str(BATCH_CELLS)}
        environment["STEVAL_MAX_CACHE_BYTES"] = "0"  # what is measured is prediction
        command = [sys.executable, "-m", "steval", "serve", str(checkpoint), "--port", str(self.port)]
        command += ["--threads", str(threads), *arguments]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise SystemExit("the service did not become ready")

    @property
    def worker(self) -> str:
        """Process id of the first worker."""
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]

    def cpu_seconds(self) -> float:
        """CPU time that the worker has used."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident memory of the worker in MB."""
        status = Path(f"/proc/{self.worker}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(120)


def _compare(service: Service, path: Path, options: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(path)
    predictor = Predictor(checkpoint, device="cpu", batch_cells=BATCH_CELLS)
    pool = checkpoint_controls(checkpoint)
    encoded = predictor.encode(pool)

    def predict(count: int, seed: int) -> float:
        started = time.perf_counter()
        names = [f"P{number}" for number in range(count)]
        plan = predictor.plan(request_names(names, options.cells, seed=seed), pool)
        sets = (one for block in predictor.predict_blocks(plan.sets(), encoded) for one in block.split())
        for _ in predicted_means(plan, sets):
            pass
        return time.perf_counter() - started

    torch.set_num_threads(options.threads)
    predict(8, 0)
    _load(service.port, 8, 2.0, options.cells)
    singles = _in_turns(service, options, predict)
    idle = _in_turns(service, options, predict, idle=options.idle) if options.idle else None
    many, served = [], {clients: [] for clients in CLIENTS}
    cpu: dict[str, list[float]] = {"in process": [], **{f"{clients:2} clients": [] for clients in CLIENTS}}
    for repeat in range(ROUNDS):
        before = time.process_time()
        many += [32 / predict(32, seed) for seed in range(repeat, repeat + 3)]
        cpu["in process"].append((time.process_time() - before) / 96)
        for clients in CLIENTS:
            before = service.cpu_seconds()
            served[clients].append(_load(service.port, clients, options.seconds / ROUNDS, options.cells))
            cpu[f"{clients:2} clients"].append((service.cpu_seconds() - before) / len(served[clients][-1][1]))
    print(
        f"{options.genes} genes, {options.cells} cells a request, {torch.get_num_threads()} threads, {ROUNDS} rounds in turns"
    )
    _print_rates(many, served)
    each = "  ".join(f"{name} {1e3 * statistics.median(seconds):.1f} ms" for name, seconds in cpu.items())
    print(f"CPU time of a request (without its client): {each}")
    _print_singles("one request after another", singles)
    if idle is not None:
        _print_singles(f"one request after {options.idle} s without any", idle)


def _in_turns(
    service: Service, options: argparse.Namespace, predict: Callable[[int, int], float], *, idle: float = 0.0
) -> tuple[list[float], list[float]]:
    """Seconds of single requests in process, and served; `idle`: seconds before each of them."""
    single, alone = [], []
    with closing(_Client(service.port, 0, options.cells)) as client:
        for turn in range(TURNS):
            for seconds, ask in ((single, lambda seed: predict(1, seed)), (alone, lambda _: client.ask())):
                time.sleep(PAUSE)
                for number in range(TURN):
                    time.sleep(idle)
                    found = ask(TURN * turn + number)
                    if number:
                        seconds.append(found)
    return single, alone


def _print_singles(what: str, times: tuple[list[float], list[float]]) -> None:
    single, alone = (1e3 * statistics.median(seconds) for seconds in times)
    print(
        f"{what}, {len(times[0])} each in turns: p50 {single:.1f} ms in process, {alone:.1f} ms served; overhead at the median "
        f"{alone - single:.1f} ms"
    )


def _print_rates(many: list[float], served: dict[int, list[tuple[float, list[float]]]]) -> None:
    reference = statistics.median(many)
    print(f"in process, 32 at once  {reference:8.2f} requests/s ({min(many):.2f} to {max(many):.2f})")
    for clients, rounds in served.items():
        rates = [rate for rate, _ in rounds]
        times = sorted(seconds for _, every in rounds for seconds in every)
        p50, p99 = (1e3 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
        rate = statistics.median(rates)
        print(
            f"served, {clients:2} clients  {rate:8.2f} requests/s ({min(rates):.2f} to {max(rates):.2f})  p50 {p50:8.1f} ms  "
            f"p99 {p99:8.1f} ms  {100 * rate / reference:5.1f} % of in process"
        )


def _load(port: int, clients: int, seconds: float, cells: int) -> tuple[float, list[float]]:
    """Closed loop of `clients`; requests per second, and the seconds of each."""
    times: list[list[float]] = [[] for _ in range(clients)]
    deadline = time.perf_counter() + seconds

    def one(number: int) -> None:
        with closing(_Client(port, number, cells)) as client:
            while time.perf_counter() < deadline:
                times[number].append(client.ask())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = list(itertools.chain.from_iterable(times))
    return len(every) / (time.perf_counter() - started), every


class _Client:
    """A connection that asks for one perturbation after another."""

    def __init__(self, port: int, number: int, cells: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._rng = random.Random(number)
        self._cells = cells

    def ask(self) -> float:
        """Seconds from the request to the last byte of its answer."""
        name, seed = f"P{self._rng.randrange(NUM_PERTURBATIONS)}", self._rng.randrange(100)
        body = json.dumps({"perturbations": [name], "cells": self._cells, "seed": seed})
        started = time.perf_counter()
        self._connection.request("POST", "/predict", body, {"Content-Type": JSON, "Accept-Encoding": "identity"})
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - started
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {content[:1000]!r}")
        return seconds

    def close(self) -> None:
        self._connection.close()


async def _soak(service: Service, options: argparse.Namespace) -> None:
    """Eight clients that ask for everything; resident memory every few seconds."""
    deadline = time.perf_counter() + options.soak
    statuses: dict[int, int] = {}
    memory: list[tuple[float, float]] = []

    async def one(number: int, client: httpx.AsyncClient) -> None:
        rng = random.Random(number)
        while time.perf_counter() < deadline:
            name = "nobody" if rng.random() < 0.05 else f"P{rng.randrange(NUM_PERTURBATIONS)}"
            body = {"perturbations": [name], "cells": rng.choice((1, 8, 64)), "seed": rng.randrange(99)}
            accept = rng.choice((JSON, JSON, JSON, ARROW, H5AD))
            if accept != JSON:
                body["output"] = "cells"
            timeout = 0.05 if rng.random() > 0.97 else 300
            try:
                answer = await client.post("/predict", json=body, headers={"accept": accept}, timeout=timeout)
                status = answer.status_code
            except httpx.TimeoutException:
                status = 0
            statuses[status] = statuses.get(status, 0) + 1

    async def watch() -> None:
        started = time.perf_counter()
        while time.perf_counter() < deadline:
            memory.append((time.perf_counter() - started, service.memory()))
            await asyncio.sleep(5)

    async with httpx.AsyncClient(base_url=service.url) as client:
        await asyncio.gather(watch(), *(one(number, client) for number in range(8)))
    counts = json.dumps(statuses, sort_keys=True)
    print(f"{sum(statuses.values())} requests in {options.soak:.0f} s; by status (0: the client left): {counts}")
    for share in range(10):
        part = [value for second, value in memory if share <= 10 * second / options.soak < share + 1]
        if part:
            print(
                f"{10 * share:3}-{10 * share + 10:3} % of the time: {statistics.median(part):8.1f} MB (most {max(part):.1f})"
            )


if __name__ == "__main__":
    main()
