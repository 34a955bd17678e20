"""Does `state tx infer` predict from a checkpoint that steval wrote what steval predicts? (1e-5 of the largest output)

    python -m venv ARC && ARC/bin/pip install arc-state==0.11.1
    python benchmarks/parity_arc_infer.py ARC_RUN_DIR --state ARC/bin/state

The model (a run directory of arc-state) goes to steval and back (`steval convert`, then `--to arc`), and arc-state's own command
predicts cells from the result. It draws control cells and does not say which; a twin of the model whose attention puts out
nothing tells: each of its rows is a function of one control cell, which is found by its value. steval then predicts the very
sets that were drawn. Weights that went to arc-state and came back are compared byte by byte.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from steval.checkpoints.conversion import ConversionOptions, convert_arc
from steval.checkpoints.export.arc_run import write_arc_run
from steval.checkpoints.store import Checkpoint, load_checkpoint

RELATIVE = 1e-5
OWN = "own"
CELLS = 23
"""Of each perturbation: a whole set and a part of one, for sets of 16."""


def cells_for(checkpoint: Checkpoint, path: Path) -> ad.AnnData:
    """Random cells of every perturbation on the checkpoint's genes."""
    manifest = checkpoint.manifest
    labels = np.repeat(manifest.perturbation_names, CELLS)
    values = 3 * np.random.default_rng(0).random((len(labels), manifest.model.input_dim), dtype=np.float32)
    columns = manifest.columns
    obs = pd.DataFrame({columns.perturbation: labels}, index=pd.Index([f"c{row}" for row in range(len(labels))]))
    obs[columns.cell_type], obs[columns.batch] = manifest.cell_types[0], manifest.batches[0]
    cells = ad.AnnData(values, obs=obs)
    cells.var_names = list(manifest.input_genes or ())
    cells.write_h5ad(path)
    return cells


def inferred(state: Path, run: Path, cells: Path, out: Path, column: str) -> np.ndarray:
    """Rows that `state tx infer` writes for `cells`."""
    command = [str(state), "tx", "infer", "--model-dir", str(run), "--adata", str(cells), "--output", str(out)]
    # arc-state's own files hold numpy scalars, which torch refuses by default since 2.6; ours need no such leave
    trusting = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if out.stem == OWN else None
    done = subprocess.run([*command, "--pert-col", column, "--quiet"], capture_output=True, text=True, env=trusting)
    if done.returncode:
        sys.exit(done.stderr)
    matrix = ad.read_h5ad(out).X
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix)


def twin(checkpoint: Checkpoint) -> Checkpoint:
    """The same with attention that puts out nothing: no cell of a set sees another."""
    silent = {name: t * 0 if name.endswith(("o_proj.weight", "attn.c_proj.weight", "attn.c_proj.bias")) else t
              for name, t in checkpoint.weights.items()}  # fmt: skip
    return replace(checkpoint, weights=silent)


def compare(checkpoint: Checkpoint, cells: ad.AnnData, real: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """Largest difference of each perturbation, relative to its largest value."""
    manifest = checkpoint.manifest
    names = cells.obs[manifest.columns.perturbation].to_numpy()
    controls = torch.from_numpy(np.asarray(cells.X)[names == manifest.control])
    network, silent, size = checkpoint.network(), twin(checkpoint).network(), manifest.model.cell_set_size
    found = {}
    for name in manifest.perturbation_names:
        if name == manifest.control:
            continue
        rows, features = np.flatnonzero(names == name), checkpoint.feature_rows([name])
        with torch.no_grad():
            each = silent(controls[:, None], features.expand(len(controls), -1)).output_BSG[:, 0]
            distance = torch.cdist(torch.from_numpy(told[rows]).double(), each.double())
            nearest, drawn = distance.min(dim=1)
            assert float(nearest.max()) < 1e-4 < float(distance.topk(2, largest=False).values[:, 1].min()), name
            ours = [
                network(controls[drawn[at : at + size]][None], features).output_BSG[0]
                for at in range(0, len(rows), size)
            ]
        theirs = torch.from_numpy(real[rows])
        found[name] = float((torch.cat(ours) - theirs).abs().max() / theirs.abs().max())
    return found


def main() -> None:
    """Both ways, once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory of arc-state whose input is expression")
    parser.add_argument("--state", type=Path, required=True, help="arc-state's command in an environment of its own")
    options: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        convert_arc(options.run, place / "first.safetensors", ConversionOptions())
        checkpoint = load_checkpoint(place / "first.safetensors")
        column = checkpoint.manifest.columns.perturbation
        cells = cells_for(checkpoint, place / "cells.h5ad")
        rows = {}
        for name, model in (("real", checkpoint), ("twin", twin(checkpoint))):
            write_arc_run(model, place / name)
            rows[name] = inferred(options.state, place / name, place / "cells.h5ad", place / f"{name}.h5ad", column)
        own = inferred(options.state, options.run, place / "cells.h5ad", place / f"{OWN}.h5ad", column)
        convert_arc(place / "real", place / "second.safetensors", ConversionOptions())
        same = load_checkpoint(place / "second.safetensors").manifest.tensors == checkpoint.manifest.tensors
        found = compare(checkpoint, cells, rows["real"], rows["twin"])
    for name, difference in found.items():
        print(f"{name:>16} {difference:.1e} of the largest value")
    print(f"state tx infer on its own files and on ours: {float(np.abs(own - rows['real']).max()):.1e} apart")
    print(f"steval -> arc-state -> steval: {'the same bytes' if same else 'OTHER WEIGHTS'}")
    sys.exit(int(not same or max(found.values()) > RELATIVE))


if __name__ == "__main__":
    main()
