"""Batch jobs: speed-up of two workers over one, and what a job costs beside its work, on both engines.

    python benchmarks/batch.py --work /tmp/steval-batch-bench -o batch.json

Small jobs (little work each) show the overhead, larger ones (thousands of cells and genes) the speed-up. Every run has a fresh
output directory; times are wall times of whole `steval batch` processes, and of the work inside their tasks.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import ControlSet, save_checkpoint
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.synthetic import generate
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

TARGET_SUM = 10_000.0
SIZES = {
    "small": {"genes": 200, "perturbations": 6, "cells": 30, "controls": 100, "jobs": 8, "hidden": 32},
    "large": {"genes": 4000, "perturbations": 24, "cells": 100, "controls": 600, "jobs": 4, "hidden": 256},
}


def make_case(directory: Path, size: dict[str, int]) -> None:
    """`jobs` checkpoints of random weights, one synthetic data set, training cells of the same screen."""
    directory.mkdir(parents=True)
    cells = generate(
        num_genes=size["genes"],
        num_perturbations=size["perturbations"],
        cells_per_perturbation=size["cells"],
        num_controls=size["controls"],
    ).cells
    cells.X = lognorm(cells.X.tocsr(), TARGET_SUM)
    cells.uns[KEY] = steval_record(made_by="benchmark", scale="lognorm", target_sum=TARGET_SUM, columns=Columns())
    half = np.arange(cells.n_obs) % 2 == 0
    cells[half].copy().write_h5ad(directory / "real.h5ad")
    cells[~half].copy().write_h5ad(directory / "train.h5ad")
    labels = cells.obs["target_gene"].astype(str)
    names = sorted(set(labels))
    heads, hidden = 4, size["hidden"]
    backbone = {"kind": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_layers": 3}
    backbone |= {"num_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads}
    config = ModelConfig.parse(
        {
            "input_dim": size["genes"], "output_dim": size["genes"], "pert_dim": len(names), "hidden_dim": hidden,
            "cell_set_size": 64, "backbone": backbone,
        }
    )  # fmt: skip
    controls = cells[(labels == "non-targeting").to_numpy()]
    manifest = Manifest(
        made_by="benchmark",
        model=config,
        input_genes=tuple(cells.var_names),
        output_genes=tuple(cells.var_names),
        scale="lognorm",
        target_sum=TARGET_SUM,
        perturbations=tuple(PerturbationEntry(name=name) for name in names),
        columns=Columns(),
        cell_types=("synthetic",),
    )
    for number in range(size["jobs"]):
        network = StateTransition(config)
        network.reset(torch.Generator().manual_seed(number))
        own = ControlSet(controls.X.tocsr(), np.full(len(controls), "synthetic"), np.full(len(controls), ""))
        save_checkpoint(
            directory / f"model{number}.safetensors",
            manifest=manifest,
            weights=network.state_dict(),
            features=torch.eye(len(names)),
            controls=own,
        )


def run(directory: Path, engine: str, workers: int, chunk: int) -> dict[str, float]:
    """One `steval batch` process from nothing; its times in seconds."""
    name = f"{engine}{workers}"
    path = directory / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "checkpoints": ["model*.safetensors"],
                "data": [{"real": "real.h5ad", "train": "train.h5ad"}],
                "chunk": chunk,
                "score": {"bootstrap": 200},
                "run": {"engine": engine, "workers": workers},
            }
        )
    )
    out = directory / f"{name}.batch"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "steval", "batch", str(path)], check=True, capture_output=True)
    wall = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "steval", "batch", str(path)], check=True, capture_output=True)
    again = time.perf_counter() - started
    database = sqlite3.connect(out / "ledger.sqlite")
    work, tasks = database.execute("SELECT sum(seconds), count(*) FROM tasks").fetchone()
    first, last, jobs = database.execute("SELECT min(started), max(finished), count(*) FROM jobs").fetchone()
    database.close()
    return {
        "wall": wall,
        "nothing_left_to_do": again,
        "work": work,
        "tasks": tasks,
        "jobs": jobs,
        "running": last - first,
        "overhead_per_job": max(0.0, (last - first) * workers - work) / jobs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--sizes", default="small,large")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    results = {}
    for size in arguments.sizes.split(","):
        directory = arguments.work / size
        shutil.rmtree(directory, ignore_errors=True)
        make_case(directory, SIZES[size])
        for engine in arguments.engines.split(","):
            runs = {workers: run(directory, engine, workers, chunk=6) for workers in (1, 2)}
            speedup = runs[1]["running"] / runs[2]["running"]
            results[f"{size}/{engine}"] = {"1": runs[1], "2": runs[2], "speedup": speedup}
            for workers, found in runs.items():
                print(size, engine, workers, {name: round(value, 2) for name, value in found.items()}, flush=True)
            print(size, engine, f"speed-up of two workers over one: {speedup:.2f}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"results": results, "cores": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    main()
