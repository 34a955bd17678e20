"""A small random checkpoint on the packaged real cells, and servers of it: in this process, and as `steval serve`."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import torch

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import ControlSet, save_checkpoint
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.example import example
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

NUM_GENES = 120
SET_SIZE = 16
TARGET_SUM = 10_000.0
NAMES = ["MED12", "SRC", "STAT1", "TET1", "TMSB4X"]


def lognorm_cells() -> ad.AnnData:
    """The packaged cells on `NUM_GENES` genes, lognorm, declared."""
    cells = example()[:, :NUM_GENES].copy()
    cells.X = lognorm(cells.X.tocsr(), TARGET_SUM)
    cells.obs["cell_type"] = "H1"
    cells.uns[KEY] = steval_record(made_by="test", scale="lognorm", target_sum=TARGET_SUM, columns=Columns())
    return cells


def write_checkpoint(path: Path, cells: ad.AnnData, *, seed: int = 0, **changes) -> Path:
    """Random weights of `seed`, one-hot perturbations, the control cells of `cells`; `changes` override manifest fields."""
    backbone = {"kind": "llama", "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}
    backbone |= {"num_key_value_heads": 4, "head_dim": 8}
    sizes = {
        "input_dim": NUM_GENES,
        "output_dim": NUM_GENES,
        "pert_dim": 6,
        "hidden_dim": 32,
        "cell_set_size": SET_SIZE,
    }
    config = ModelConfig.parse({**sizes, "backbone": backbone})
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(seed))
    controls = cells[(cells.obs["target_gene"] == "non-targeting").to_numpy()]
    weights = network.state_dict()
    # Predictions around the controls' mean, so that genes rise and fall.
    weights["final_down_then_up.2.bias"] = torch.from_numpy(np.asarray(controls.X.mean(axis=0)).ravel()).float()
    values = {
        "made_by": "test",
        "model": config,
        "input_genes": tuple(cells.var_names),
        "output_genes": tuple(cells.var_names),
        "scale": "lognorm",
        "target_sum": TARGET_SUM,
        "perturbations": tuple(PerturbationEntry(name=name) for name in [*NAMES, "non-targeting"]),
        "columns": Columns(),
        "cell_types": ("H1",),
        "batches": tuple(sorted(set(cells.obs["batch"].astype(str)))),
    }
    save_checkpoint(
        path,
        manifest=Manifest(**{**values, **changes}),
        weights=weights,
        features=torch.eye(6),
        controls=ControlSet(
            controls.X.tocsr(), np.array(["H1"] * controls.n_obs), controls.obs["batch"].astype(str).to_numpy()
        ),
    )
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until_ready(url: str, seconds: float = 120.0) -> None:
    """Wait for `/readyz`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + "/readyz", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} did not become ready")


@contextlib.contextmanager
def served_app(app) -> Generator[str, None, None]:
    """An ASGI app on a real port, from a thread of this process; yields its address."""
    import uvicorn

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, server_header=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def served_process(*arguments: str, command: tuple[str, ...] = ("-m", "steval", "serve"), **environment: str):
    """`steval serve` as a process of its own; yields its address and the process. The log is in `process.log`."""
    port = free_port()
    names = {name: value for name, value in os.environ.items() if not name.startswith(("STEVAL_", "PROMETHEUS_"))}
    names |= {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, *command, *arguments, "--port", str(port)],
        env=names, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    process.log = []
    reader = threading.Thread(target=lambda: process.log.extend(process.stdout), daemon=True)
    reader.start()
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(10)
        process.stdout.close()
