"""Rows of quality.py of arc-state: its own training and prediction, in an environment of its own.

Same cells and held-out pairs as for steval; network, sets, cells a step and learning rate of `quick-cpu`; `--arc-steps` steps, so
that it trains at least as long. One seed, one prediction of as many cells as were measured.
"""

import os
import subprocess
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from quality_simple import Row, rows_of
from quality_tasks import CONTROL, Task

from steval.data.cells.cellfile import CellFile
from steval.data.effects.measure import measure_file
from steval.workflows.checkpoints.calibrate import mean_profile

NETWORK = {
    "hidden_dim": 128, "cell_set_len": 32, "transformer_backbone_kwargs.intermediate_size": 256,
    "transformer_backbone_kwargs.num_hidden_layers": 2, "transformer_backbone_kwargs.num_attention_heads": 4,
    "transformer_backbone_kwargs.num_key_value_heads": 4, "transformer_backbone_kwargs.head_dim": 32,
}  # fmt: skip
TRAINING = {"batch_size": 16, "lr": 1e-3}


def arc_rows(task: Task, state: Path, steps: int, work: Path) -> list[Row]:
    """`state tx train`, then `state tx infer` for the test pairs."""
    directory = work / f"arc-{task.name.replace(' ', '_')}"
    run = directory / "r"
    started = time.perf_counter()
    if not (run / "checkpoints" / "final.ckpt").exists():
        _run(state, "train", *_training(task, directory, steps))
    seconds = time.perf_counter() - started
    record, _ = measure_file(CellFile.wrap(task.training()), task.columns)
    pairs = task.pairs(task.test, mean_profile(record))
    asked, told = directory / "asked.h5ad", directory / "told.h5ad"
    _plain(task.part(task.test)).write_h5ad(asked)
    _run(
        state, "infer", "--model-dir", run, "--adata", asked, "--output", told, "--pert-col", task.columns.perturbation
    )
    cells = ad.read_h5ad(told)
    labels, matrix = cells.obs[task.columns.perturbation].astype(str).to_numpy(), sp.csr_matrix(cells.X)
    found = pairs.real.scores({name: matrix[labels == name].astype(np.float32) for name in pairs.names})
    rows = rows_of(task, "arc-state 0.11.1", pairs, [found])
    return [{**row, "training_seconds": seconds, "steps": steps} for row in rows]


def _training(task: Task, directory: Path, steps: int) -> list[str]:
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    _plain(task.cells).write_h5ad(data / "cells.h5ad")
    parts = {"val": task.validation, "test": task.test}
    lines = [f"{part} = [{', '.join(repr(name) for name in names)}]" for part, names in parts.items() if names]
    toml = directory / "split.toml"
    toml.write_text(
        f'[datasets]\nm = "{data}"\n[training]\nm = "train"\n[zeroshot]\n[fewshot."m.{task.context}"]\n'
        + "\n".join(lines)
    )
    values = {
        "data.kwargs.toml_config_path": toml, "data.kwargs.pert_col": task.columns.perturbation,
        "data.kwargs.cell_type_key": task.columns.cell_type, "data.kwargs.batch_col": "batch",
        "data.kwargs.control_pert": CONTROL, "data.kwargs.num_workers": 0, "use_wandb": "false", "model": "state_sm",
        **{f"model.kwargs.{name}": value for name, value in NETWORK.items()},
        **{f"training.{name}": value for name, value in TRAINING.items()},
        "training.max_steps": steps, "training.val_freq": steps, "training.ckpt_every_n_steps": steps,
        "output_dir": directory, "name": "r", "overwrite": "true",
    }  # fmt: skip
    return [f"{name}={value}" for name, value in values.items()]


def _plain(cells: ad.AnnData) -> ad.AnnData:
    """As cell-load can read it: gene names in a column, a batch for every cell."""
    plain = ad.AnnData(sp.csr_matrix(cells.X), obs=cells.obs.copy(), var=cells.var.iloc[:, :0].copy())
    plain.var["gene_name"] = list(cells.var_names)
    plain.var = plain.var.rename_axis(None)
    if "batch" not in plain.obs:
        plain.obs["batch"] = "one"
    return plain


def _run(state: Path, command: str, *arguments: object) -> None:
    # arc-state's own files hold numpy scalars, which torch refuses by default since 2.6
    surroundings = {**os.environ, "WANDB_MODE": "disabled", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [str(state), "tx", command, *map(str, arguments)], capture_output=True, text=True, env=surroundings, check=False
    )
    if done.returncode:
        raise SystemExit(f"state tx {command} exited {done.returncode}:\n{done.stderr[-4000:]}")
