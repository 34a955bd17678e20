"""A whole screen predicted: 300 perturbations × 400 cells × 18,080 genes, by the network alone, to nowhere, and to h5ad.

The difference between the network alone (cells stay on the device), `to nowhere` (cells arrive on the host, as an array or as
CSR) and the file is what transfer and writing cost; each of them overlaps with the computation of the next cells. The plain
loop is the network as it is trained, in float32, a set at a time, each copied to the host when it is done.
"""

import os
import time
from typing import Any

import numpy as np
import torch
from make import ACTIVE
from network import SET_SIZE
from stage import Stage

from steval.checkpoints.store import Checkpoint, load_checkpoint
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.output import OutputOptions
from steval.predictor.requests import request_names


def run(stage: Stage) -> None:
    """Note seconds and rates of each form."""
    checkpoint = load_checkpoint(stage.made("checkpoint.safetensors"))
    pool = checkpoint_controls(checkpoint)
    names = [name for name in checkpoint.manifest.perturbation_names if name != checkpoint.manifest.control]
    whole = request_names(names, stage.size(400, 70), seed=0)
    stage.note(cells=whole.num_cells, genes=checkpoint.manifest.model.output_dim, aimed_density=ACTIVE)
    _compare(stage, checkpoint, pool, names)
    runs: dict[str, Any] = {}
    for dtype, batch in (("bf16", 4096), ("float32", 4096), ("bf16", 1024)):
        predictor = Predictor(checkpoint, device=stage.device, dtype=dtype, batch_cells=stage.size(batch, 128))
        encoded = predictor.encode(pool)
        planned = list(predictor.plan(whole, pool).sets())
        label = f"{dtype}, {batch} at once"
        list(predictor.predict_blocks(planned[: 4 * batch // SET_SIZE], encoded, sparse=True))
        runs[f"{label}: network alone"] = _alone(stage, predictor, planned, encoded)
        for form, sparse in (("as CSR", True), ("as arrays", False)):
            runs[f"{label}: to nowhere, {form}"] = _to_nowhere(stage, predictor, planned, encoded, sparse)
        stage.note(runs=runs)
        if batch == 4096:
            runs[f"{label}: to h5ad"] = _to_file(stage, predictor, whole, pool)
            stage.note(runs=runs)
    runs["plain loop, float32"] = _plain(stage, checkpoint, pool, names)
    stage.note(runs=runs)


def _rated(seconds: float, cells: int) -> dict[str, float]:
    return {"seconds": seconds, "cells_per_second": cells / seconds}


def _alone(stage: Stage, predictor: Predictor, planned: list[Any], encoded: Any) -> dict[str, float]:
    from steval.predictor.sets import windows

    stage.synchronise()
    started = time.perf_counter()
    for window in windows(planned, predictor.batch_cells):
        predictor._predict_window(window, encoded)
    stage.synchronise()
    return _rated(time.perf_counter() - started, sum(one.num_cells for one in planned))


def _to_nowhere(stage: Stage, predictor: Predictor, planned: list[Any], encoded: Any, sparse: bool) -> dict[str, float]:
    started = time.perf_counter()
    values = 0
    for block in predictor.predict_blocks(planned, encoded, sparse=sparse):
        values += block.cells.nnz if sparse else 0
    cells = sum(one.num_cells for one in planned)
    found = _rated(time.perf_counter() - started, cells)
    return found | ({"density": values / cells / predictor.num_outputs} if sparse else {})


def _to_file(stage: Stage, predictor: Predictor, request: Any, pool: Any) -> dict[str, float]:
    path = stage.work / "predicted.h5ad"
    written = predict_into(path, predictor, request, pool, OutputOptions(include_controls=False))
    size = path.stat().st_size
    path.unlink()
    return _rated(written.seconds, written.num_cells) | {"file_GB": size / 1e9, "write_Bps": size / written.seconds}


@torch.no_grad()
def _plain(stage: Stage, checkpoint: Checkpoint, pool: Any, names: list[str]) -> dict[str, float]:
    torch.set_float32_matmul_precision("highest")
    network = checkpoint.network().to(stage.device)
    rows = pool.inputs(np.arange(SET_SIZE)).toarray()
    count = stage.size(60, 2)
    features = checkpoint.feature_rows(names)
    for number in range(count + 3):
        if number == 3:
            stage.synchronise()
            started = time.perf_counter()
        control = torch.from_numpy(rows)[None].to(stage.device)
        network(control, features[number % len(names), None].to(stage.device)).output_BSG.cpu().numpy()
    return _rated(time.perf_counter() - started, count * SET_SIZE)


def _compare(stage: Stage, checkpoint: Checkpoint, pool: Any, names: list[str]) -> None:
    """Largest differences from the processors' float32 predictions, absolute."""
    request = request_names(names[:2], stage.size(SET_SIZE, 16), seed=0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def cells(device: str, dtype: Any) -> np.ndarray:
        predictor = Predictor(checkpoint, device=device, dtype=dtype)
        return np.concatenate([one.cells for one in predictor.predict(request, pool)])

    expected = cells("cpu", "float32")
    differences = {dtype: float(np.abs(cells(stage.device, dtype) - expected).max()) for dtype in ("float32", "bf16")}
    stage.note(largest_difference=differences, largest_value=float(expected.max()))
