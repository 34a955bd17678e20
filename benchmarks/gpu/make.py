"""What the stages read: cells to fine-tune on, and a checkpoint with control cells; made beside the first stages."""

import numpy as np
from cells import TARGET_SUM, draw_cells, label_names
from network import model_settings
from stage import Stage

NUM_PERTURBATIONS = 300
ACTIVE = 0.15
"""Share of a prediction that is not zero: a network of random weights is told by its last bias."""


def run(stage: Stage) -> None:
    """Write cells.h5ad and checkpoint.safetensors into the work directory."""
    num_genes = stage.size(18_080, 240)
    _cells(stage, num_genes)
    _checkpoint(stage, num_genes)


def _cells(stage: Stage, num_genes: int) -> None:
    from steval.data.cells.record import steval_record
    from steval.data.cells.writer import CellWriter
    from steval.data.columns import Columns

    labels = np.repeat(np.arange(21), stage.size(800, 40))
    matrix = draw_cells(labels, num_genes, seed=1)
    record = steval_record(
        made_by="benchmarks/gpu", scale="lognorm", target_sum=TARGET_SUM, columns=Columns(), details={}
    )
    genes = [f"GENE{number}" for number in range(num_genes)]
    with CellWriter(stage.work / "cells.h5ad", genes, record, compression="none") as writer:
        obs = {"target_gene": label_names(labels), "cell_type": ["A"] * len(labels), "batch": ["b"] * len(labels)}
        writer.append(matrix, obs)


def _checkpoint(stage: Stage, num_genes: int) -> None:
    import torch

    from steval.checkpoints.manifest import Manifest, PerturbationEntry
    from steval.checkpoints.store import ControlSet, save_checkpoint
    from steval.data.columns import Columns
    from steval.model.config import ModelConfig
    from steval.model.network import StateTransition

    num_perturbations = stage.size(NUM_PERTURBATIONS, 6)
    config = ModelConfig.parse(model_settings(stage.small, num_genes, num_perturbations + 1))
    with torch.device("meta"):
        network = StateTransition(config)
    network = network.to_empty(device="cpu").eval()
    network.reset(torch.Generator().manual_seed(0))
    controls = draw_cells(np.zeros(512, dtype=np.int64), num_genes, seed=2)
    features = torch.eye(num_perturbations + 1)
    with torch.no_grad():
        cells = torch.from_numpy(controls[:64].toarray())[None]
        bottleneck = network.final_down_then_up
        before = bottleneck(network.project_out(network.basal_encoder(cells)) + cells)
        bottleneck[2].bias -= torch.quantile(before.flatten()[:1_000_000], 1 - ACTIVE)
    names = tuple(f"GENE{number}" for number in range(num_genes))
    entries = [*(f"P{number + 1}" for number in range(num_perturbations)), "non-targeting"]
    manifest = Manifest(
        made_by="benchmarks/gpu", model=config, input_genes=names, output_genes=names, scale="lognorm", target_sum=TARGET_SUM,
        perturbations=tuple(PerturbationEntry(name=name) for name in entries), columns=Columns(), cell_types=("A",),
        batches=("b",),
    )  # fmt: skip
    labels = np.array(["A"] * 512), np.array(["b"] * 512)
    save_checkpoint(
        stage.work / "checkpoint.safetensors", manifest=manifest, weights=network.state_dict(), features=features,
        controls=ControlSet(controls, *labels),
    )  # fmt: skip
