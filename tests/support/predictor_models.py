"""Small random checkpoints on the packaged real cells, and lognorm cells to predict from."""

from pathlib import Path

import anndata as ad
import numpy as np
import torch

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import Checkpoint, ControlSet, load_checkpoint, save_checkpoint
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.example import example
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

SET_SIZE = 16
NUM_GENES = 120
TARGET_SUM = 10_000.0


def tiny_config(**changes) -> ModelConfig:
    """A two-layer Llama on `NUM_GENES` genes, six one-hot perturbations; `changes` override fields."""
    backbone = {
        "kind": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
    }
    values = {
        "input_dim": NUM_GENES,
        "output_dim": NUM_GENES,
        "pert_dim": 6,
        "hidden_dim": 32,
        "backbone": backbone,
        "cell_set_size": SET_SIZE,
    }
    return ModelConfig.parse({**values, **changes})


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a network with weights drawn from `seed`."""
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(seed))
    return network.state_dict()


def lognorm_cells() -> ad.AnnData:
    """The packaged H1 cells on their first `NUM_GENES` genes, lognorm, declared; 100 cells of each of six labels."""
    cells = example()[:, :NUM_GENES].copy()
    cells.X = lognorm(cells.X.tocsr(), TARGET_SUM)
    columns = Columns(cell_type=None)
    cells.uns[KEY] = steval_record(made_by="test", scale="lognorm", target_sum=TARGET_SUM, columns=columns)
    return cells


def manifest_for(config: ModelConfig, cells: ad.AnnData, **changes) -> Manifest:
    """A manifest whose vocabulary is the labels of `cells`, control last."""
    labels = sorted(set(cells.obs["target_gene"].astype(str)) - {"non-targeting"})
    values = {
        "made_by": "test",
        "model": config,
        "input_genes": tuple(cells.var_names),
        "output_genes": tuple(cells.var_names),
        "scale": "lognorm",
        "target_sum": TARGET_SUM,
        "perturbations": tuple(PerturbationEntry(name=name) for name in [*labels, "non-targeting"]),
        "columns": Columns(),
        "cell_types": ("H1",),
        "batches": tuple(sorted(set(cells.obs["batch"].astype(str)))),
    }
    return Manifest(**{**values, **changes})


def write_checkpoint(path: Path, config: ModelConfig, cells: ad.AnnData, **changes) -> Checkpoint:
    """Save and load a checkpoint of random weights that carries the control cells of `cells`."""
    manifest = manifest_for(config, cells, **changes)
    controls = cells[(cells.obs["target_gene"] == "non-targeting").to_numpy()]
    labels = np.array(["H1"] * controls.n_obs)
    own = ControlSet(controls.X.tocsr(), labels, controls.obs["batch"].astype(str).to_numpy())
    features = torch.eye(len(manifest.perturbations), config.pert_dim)
    save_checkpoint(path, manifest=manifest, weights=random_weights(config), features=features, controls=own)
    return load_checkpoint(path)
