"""The whole way with seconds and memory of each step: arc-state's files converted, fine-tuned, served, and scored in a batch.

    python benchmarks/mission.py WORK_DIRECTORY [--program 'python -m steval'] [--steps 1] [--small]
    python benchmarks/mission.py WORK_DIRECTORY --image ROOTFS      in an image's file system, as its user (needs root)

Two models of ST-Tahoe's shape (1,440 wide, 4 blocks, 2,058 inputs) with random weights are written as arc-state's run directories,
beside a generated screen of 18,080 genes. From there on every step is a command of `steval`, in a process of its own: memory is
the largest resident set of its processes. The driver needs Python's standard library alone; what makes the inputs runs where
`steval` is, as a step of its own.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ("a", "b")
SCREEN = "screen.h5ad"
SHAPES = {
    "whole": {
        "hidden": 1440,
        "intermediate": 4416,
        "layers": 4,
        "heads": 12,
        "head_dim": 120,
        "inputs": 2058,
        "genes": 18_080,
    },
    "small": {"hidden": 32, "intermediate": 48, "layers": 4, "heads": 4, "head_dim": 8, "inputs": 20, "genes": 300},
}
NUM_PERTURBATIONS, CELLS, CONTROLS = 6, 60, 240
READY_SECONDS = 300
MANIFEST = """checkpoints:
  - {path: runs/a/checkpoints/best-val.safetensors, name: a}
  - {path: runs/b/checkpoints/best-val.safetensors, name: b}
data:
  - {real: screen.h5ad, train: screen.h5ad}
requests:
  - {name: all}
score: {profile: vcc}
"""


@dataclass
class Mission:
    """Where the steps run, by what program, and what was measured."""

    work: Path
    program: list[str]
    python: list[str]
    environment: dict[str, str]
    measured: list[tuple[str, float, float]] = field(default_factory=list)

    def step(self, name: str, command: list[str]) -> None:
        """Run a command to its end; a failed one ends the mission with what it wrote."""
        began = time.monotonic()
        log = self.work / "mission.log"
        with log.open("ab") as file:
            process = subprocess.Popen(command, cwd=self.work, env=self.environment, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(
                f"{name} ended with {process.returncode}; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}"
            )
        self.note(name, time.monotonic() - began, usage)

    def note(self, name: str, seconds: float, usage: resource.struct_rusage | None = None) -> None:
        """Keep and print a measurement; memory in GB, 0 where it belongs to another line."""
        gigabytes = usage.ru_maxrss * 1024 / 1e9 if usage else 0.0
        self.measured.append((name, seconds, gigabytes))
        print(f"{name:58} {seconds:8.1f} s {f'{gigabytes:6.2f} GB' if usage else ''}", flush=True)

    def steval(self, name: str, *arguments: str) -> None:
        """A step that is a command of steval."""
        self.step(name, [*self.program, *arguments])

    def serve(self) -> None:
        """The service from its start to an answer over HTTP, and its end by SIGTERM."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        command = [
            *self.program,
            "serve",
            "runs/a/checkpoints/best-val.safetensors",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with (self.work / "service.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.work, env=self.environment, stdout=log, stderr=log)
        try:
            wait_until_ready(url, process)
            self.note("serve: from start to ready", time.monotonic() - began)
            names = [one["name"] for one in ask(f"{url}/perturbations")["perturbations"]]
            for which in ("first", "second"):
                asked = time.monotonic()
                answer = ask(f"{url}/predict", {"perturbations": names[:1], "cells": 100, "seed": len(which)})
                self.note(
                    f"serve: {which} answer, 100 cells of {len(answer['genes']):,} genes", time.monotonic() - asked
                )
        finally:
            ended = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        self.note("serve: to its end (memory: all the while)", time.monotonic() - ended, usage)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(url: str, body: dict | None = None) -> dict:
    """A JSON answer of the service."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", "Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    """Wait for `/readyz`."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("the service did not become ready; see service.log in the work directory")


def make_inputs(work: Path, shape: dict[str, int]) -> None:
    """Two arc-state run directories with random weights, and raw counts of a screen. Runs where steval is."""
    from steval.data.synthetic import generate

    for seed, name in enumerate(MODELS):
        make_arc_run(work / f"arc_{name}", shape, seed)
    screen = generate(
        num_genes=shape["genes"], num_perturbations=NUM_PERTURBATIONS, cells_per_perturbation=CELLS, num_controls=CONTROLS,
    )  # fmt: skip
    screen.cells.write_h5ad(work / "counts.h5ad")
    (work / "night.yaml").write_text(MANIFEST)


def make_arc_run(directory: Path, shape: dict[str, int], seed: int) -> None:
    """An arc-state run directory of a random embedding model."""
    import torch

    from steval.checkpoints.export.arc_run import write_arc_run
    from steval.checkpoints.manifest import Manifest, PerturbationEntry
    from steval.checkpoints.store import load_checkpoint, save_checkpoint
    from steval.data.columns import Columns
    from steval.model.config import ModelConfig
    from steval.model.network import StateTransition

    names = [*(f"DRUG{number}" for number in range(9)), Columns().control]
    backbone = {
        "kind": "llama", "hidden_size": shape["hidden"], "intermediate_size": shape["intermediate"], "num_layers": shape["layers"],
        "num_heads": shape["heads"], "num_key_value_heads": shape["heads"], "head_dim": shape["head_dim"],
    }  # fmt: skip
    config = ModelConfig.parse(
        {
            "input_dim": shape["inputs"], "output_dim": shape["inputs"], "pert_dim": len(names), "hidden_dim": shape["hidden"],
            "cell_set_size": 256, "input_key": "X_state", "output_space": "embedding", "backbone": backbone,
        }
    )  # fmt: skip
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(seed))
    manifest = Manifest(
        made_by="benchmarks/mission.py", model=config, input_genes=None, output_genes=None, scale="embedding", target_sum=None,
        perturbations=tuple(PerturbationEntry(name=name) for name in names), columns=Columns(), cell_types=("A",), batches=("b",),
    )  # fmt: skip
    path = directory.with_suffix(".safetensors")
    save_checkpoint(path, manifest=manifest, weights=network.state_dict(), features=torch.eye(len(names)))
    write_arc_run(load_checkpoint(path), directory)
    path.unlink()


def run(mission: Mission, options: argparse.Namespace) -> None:
    """All steps."""
    size = "small" if options.small else "whole"
    shutil.copy(__file__, mission.work / "mission.py")
    mission.step(
        "inputs: two models in arc-state's files, a screen", [*mission.python, "mission.py", ".", "--make", size]
    )
    mission.steval("prepare: counts to lognorm", "prepare", "counts.h5ad", "-o", SCREEN)
    settings = {"data.files": f"[{SCREEN}]", "data.target_sum": "10000", "sets.size": "32", "sets.per_batch": "2"}
    settings |= {f"phases.{phase}.steps": str(options.steps) for phase in range(4)}
    for seed, name in enumerate(MODELS):
        mission.steval(f"convert {name}", "convert", f"arc_{name}", "-o", f"{name}.safetensors")
        told = [part for key, value in (settings | {"seed": str(seed)}).items() for part in ("--set", f"{key}={value}")]
        start = ["finetune", "raw-staged", "--init-from", f"{name}.safetensors", "--run", f"runs/{name}"]
        mission.steval(f"finetune {name}: raw-staged, {4 * options.steps} steps of 64 cells", *start, *told)
        keep_best(mission.work / "runs" / name)
    mission.serve()
    mission.steval("batch: both predicted and scored", "batch", "night.yaml", "--workers", "1")
    board = (mission.work / "night.batch" / "leaderboard.csv").read_text().splitlines()
    if len(board) != 1 + len(MODELS) or not all(",scored," in line for line in board[1:]):
        sys.exit("the leaderboard lacks a score:\n" + "\n".join(board))


def keep_best(run_dir: Path) -> None:
    """Leave of a run its best checkpoint alone: states of an optimiser are several GB."""
    for path in [one for one in run_dir.rglob("*") if one.is_file() and one.name != "best-val.safetensors"]:
        path.unlink()


def launcher(options: argparse.Namespace, work: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """How `steval` and `python` are run, and their environment."""
    if options.image is None:
        program = shlex.split(options.program)
        return program, [program[0] if program[0] != "steval" else sys.executable], dict(os.environ)
    os.chown(work, 1034, 1034)
    inside = ["bash", str(ROOT / "deploy" / "run_rootfs.sh")]
    return inside, [*inside, "python"], {**os.environ, "ROOTFS": str(options.image.resolve()), "WORK": str(work)}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--program", default=f"{sys.executable} -m steval")
    parser.add_argument("--image", type=Path, help="an image's file system")
    parser.add_argument("--steps", type=int, default=1, help="of each of the four phases")
    parser.add_argument("--small", action="store_true", help="a tiny model and screen")
    parser.add_argument("--make", choices=tuple(SHAPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_inputs(options.work, SHAPES[options.make])
        return
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    mission = Mission(work, *launcher(options, work))
    run(mission, options)
    (work / "mission.json").write_text(json.dumps(mission.measured, indent=1))


if __name__ == "__main__":
    main()
