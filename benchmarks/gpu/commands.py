"""The user's commands on the device, one after another: `steval finetune` (two phases), `predict`, `score`.

Predictions are made on the processors too, from the same checkpoint, and both must agree; so must the scores.
"""

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from network import SET_SIZE, network_settings
from stage import Stage

SECONDS = 60
"""Most of one command."""


def run(stage: Stage) -> None:
    """Note the seconds of each command, and the largest differences."""
    import yaml

    cells, work = stage.made("cells.h5ad"), stage.work / "commands"
    work.mkdir()
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump(_config(stage, cells)))
    taken: dict[str, float] = {}

    def steval(name: str, *words: Any) -> None:
        started = time.perf_counter()
        code = (_here if stage.together else _apart)(list(map(str, words)))
        if code:
            raise SystemExit(f"{name} ended with {code}")
        taken[name] = time.perf_counter() - started
        stage.note(seconds=taken)

    steval("finetune", "finetune", config, "--run", work / "run", "--device", stage.device)
    rows = list(csv.DictReader((work / "run" / "metrics.csv").open()))
    losses = [float(row["val/gene"]) for row in rows if row.get("val/gene")]
    stage.note(validation_loss_first=losses[0], validation_loss_last=losses[-1])
    if not losses[-1] < losses[0]:
        raise SystemExit(f"fine-tuning has not lowered the validation loss: {losses}")
    for device in dict.fromkeys((stage.device, "cpu")):
        words = [
            "predict",
            work / "run",
            "--out",
            work / f"{device}.h5ad",
            "--cells",
            stage.size(64, 10),
            "--decoding",
            "network",
        ]
        steval(f"predict on {device}", *words, "--device", device)
    if stage.on_gpu:
        found, expected = (_cells(work / f"{device}.h5ad") for device in (stage.device, "cpu"))
        difference = float(abs(found - expected).max())
        stage.note(largest_difference_of_cells=difference, largest_value=float(expected.max()))
        if not difference < 1e-4:
            raise SystemExit(f"cells predicted on the device and on the processors differ by {difference}")
    for device in dict.fromkeys((stage.device, "cpu")):
        words = ["score", work / f"{stage.device}.h5ad", "--real", cells, "--metrics-only"]
        steval(f"score on {device}", *words, "--out", work / f"{device}.score", "--device", device)
    scores = [_scores(work / f"{device}.score") for device in dict.fromkeys((stage.device, "cpu"))]
    stage.note(
        metrics=len(scores[0]),
        largest_difference_of_scores=max(abs(scores[0][name] - scores[-1][name]) for name in scores[-1]),
    )


def _apart(words: list[str]) -> int:
    """The exit code of a command in a process of its own, as users run it."""
    command = [sys.executable, "-m", "steval", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    print(f"$ {' '.join(command[1:])}\n{done.stdout[-3000:]}{done.stderr[-3000:]}", flush=True)
    return done.returncode


def _here(words: list[str]) -> int | str | None:
    """The same in this process, where imports are done."""
    from steval.cli.app import app

    try:
        app(words)
    except SystemExit as end:
        return end.code
    return 0


def _config(stage: Stage, cells: Path) -> dict[str, Any]:
    rates = {"encoders": 1e-4, "outputs": 1e-4}
    steps = stage.size(30, 3)
    return {
        "data": {"files": [str(cells)], "split": {"by": "cells", "val": 0.05, "test": 0.05}, "memory_gb": 8.0},
        "network": network_settings(stage.small),
        "phases": [
            {"name": "all", "trains": "all", "steps": steps, "rates": rates | {"backbone": 3e-5}},
            {"name": "outside", "trains": ["encoders", "outputs"], "steps": steps, "rates": rates},
        ],
        "sets": {"size": stage.size(SET_SIZE, 8), "per_batch": stage.size(16, 4)},
        "checks": {"log_every": 10, "validate_every": steps, "validation_sets": 1, "calibrate": False},
        "compute": {"devices": 1, "cuda_graph": True},
        "loggers": ["csv"],
    }


def _cells(path: Path) -> Any:
    import anndata as ad

    return ad.read_h5ad(path).X.toarray()


def _scores(directory: Path) -> dict[str, float]:
    """Value by metric and cell type."""
    rows = csv.DictReader((directory / "breakdown.csv").open())
    return {f"{row.get('cell_type')} {row['metric']}": float(row["value"]) for row in rows if row["value"]}
