"""Two small checkpoints, the packaged cells and generated ones on the same genes, and manifests of them."""

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import torch
import yaml

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import ControlSet, save_checkpoint
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.example import example
from steval.data.reference import DataReference, FileReference
from steval.data.synthetic import generate
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

NUM_GENES = 120
TARGET_SUM = 10_000.0
NAMES = ["MED12", "SRC", "STAT1", "TET1", "TMSB4X"]
CONTROL = "non-targeting"


def real_cells() -> ad.AnnData:
    """The packaged cells on their first genes, lognorm, declared: 100 cells of each of six labels."""
    return _declared(example()[:, :NUM_GENES].copy())


def synthetic_cells(seed: int = 1) -> ad.AnnData:
    """Generated cells under the packaged names: five perturbations of 40 cells, 80 controls."""
    cells = generate(
        num_genes=NUM_GENES, num_perturbations=5, cells_per_perturbation=40, num_controls=80, affected_genes=(5, 30),
        cell_types=("H1",), counts_per_cell=3000.0, seed=seed,
    ).cells  # fmt: skip
    targets = sorted(set(cells.obs["target_gene"].astype(str)) - {CONTROL})
    renamed = {**dict(zip(targets, NAMES, strict=True)), CONTROL: CONTROL}
    cells.obs["target_gene"] = [renamed[name] for name in cells.obs["target_gene"].astype(str)]
    cells.var_names = real_cells().var_names
    return _declared(cells)


def write_checkpoint(path: Path, seed: int, cells: ad.AnnData, **changes) -> Path:
    """A two-layer Llama with weights drawn from `seed` that knows the packaged perturbations."""
    backbone = {"kind": "llama", "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}
    sizes = {"input_dim": NUM_GENES, "output_dim": NUM_GENES, "pert_dim": 6, "hidden_dim": 32, "cell_set_size": 16}
    config = ModelConfig.parse({**sizes, "backbone": backbone | {"num_key_value_heads": 4, "head_dim": 8}})
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(seed))
    controls = cells[(cells.obs["target_gene"] == CONTROL).to_numpy()]
    manifest = Manifest(
        made_by="test",
        model=config,
        input_genes=tuple(cells.var_names),
        output_genes=tuple(cells.var_names),
        scale="lognorm",
        target_sum=TARGET_SUM,
        perturbations=tuple(PerturbationEntry(name=name) for name in [*NAMES, CONTROL]),
        columns=Columns(),
        cell_types=("H1",),
    ).model_copy(update=changes)
    save_checkpoint(
        path,
        manifest=manifest,
        weights=network.state_dict(),
        features=torch.eye(6),
        controls=ControlSet(controls.X.tocsr(), np.array(["H1"] * controls.n_obs), np.array([""] * controls.n_obs)),
    )
    return path


def reference_to(path: Path) -> DataReference:
    """All cells of a file, as a checkpoint records them."""
    return DataReference(files=(FileReference.of(path),), columns=Columns(), scale="lognorm", target_sum=TARGET_SUM)


def write_case(directory: Path) -> Path:
    """The issue's case under `directory`: `models/{a,b}.safetensors`, `data/{packaged,synthetic}.h5ad`, training cells."""
    (directory / "models").mkdir(parents=True)
    (directory / "data").mkdir()
    real = real_cells()
    for name, seed in (("a", 0), ("b", 1)):
        write_checkpoint(directory / "models" / f"{name}.safetensors", seed, real)
    half = np.arange(real.n_obs) % 2 == 0
    real[half].copy().write_h5ad(directory / "data" / "packaged.h5ad")
    real[~half].copy().write_h5ad(directory / "train.h5ad")
    synthetic_cells().write_h5ad(directory / "data" / "synthetic.h5ad")
    return directory


def write_manifest(directory: Path, name: str = "night", **changes) -> Path:
    """Every checkpoint of the case on every data set, in chunks of two perturbations."""
    values = {
        "checkpoints": ["models/*.safetensors"],
        "data": [{"real": "data/*.h5ad", "train": "train.h5ad"}],
        "requests": [{"name": "all"}],
        "score": {"bootstrap": 50},
        "chunk": 2,
        "run": {"workers": 2},
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return path


def start_batch(manifest: Path, *arguments: str, most_kilobytes: int | None = None) -> subprocess.Popen:
    """`steval batch` as a process of its own, in a process group of its own; no file of it gets larger than `most_kilobytes`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEVAL_")}
    command = [sys.executable, "-m", "steval", "batch", str(manifest), *arguments]
    if most_kilobytes is not None:
        command = ["bash", "-c", f'ulimit -f {most_kilobytes}; exec "$@"', "bash", *command]
    return subprocess.Popen(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def _declared(cells: ad.AnnData) -> ad.AnnData:
    cells.X = lognorm(cells.X.tocsr(), TARGET_SUM)
    cells.obs["cell_type"] = "H1"
    cells.uns[KEY] = steval_record(made_by="test", scale="lognorm", target_sum=TARGET_SUM, columns=Columns())
    return cells
