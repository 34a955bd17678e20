#!/usr/bin/env python
"""Cells a second of the decodings of one checkpoint on 18,080 genes, in one process: `network` against `carried`.

    python benchmarks/carried.py [--hidden 128] [--layers 2] [--cells 100 1000] [--perturbations 8] [--repeats 3]

Synthetic lognorm cells of two cell types, a network of random weights, training effects measured on the other cell type. For each
number of cells of a perturbation: the network's own cells; cells that carry a simple model's effect (what a calibrated
checkpoint without a share of the network does); cells that carry a mixture (256 cells of each perturbation go through the
network). Cells come as they are written to an h5ad (CSR). Decodings take turns, medians are printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import Checkpoint, load_checkpoint, save_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.measure import measure_file
from steval.data.synthetic import generate
from steval.model.config import ModelConfig
from steval.model.network import StateTransition
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.requests import PredictionRequest, RequestItem

NUM_GENES = 18_080
TARGET_SUM = 10_000.0
DECODINGS = {
    "network": DecodingSettings(),
    "carried, network at 0": DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings()),
    "carried, a quarter network": DecodingSettings(kind="carried", network_weight=0.25, anchor=AnchorSettings()),
}


def made_checkpoint(options: argparse.Namespace, path: Path) -> tuple[Checkpoint, CellFile]:
    """A checkpoint of random weights, and the cells that it starts from."""
    cells = generate(
        num_genes=NUM_GENES, num_perturbations=options.perturbations, cells_per_perturbation=20, num_controls=300,
        cell_types=("X", "Y"), affected_genes=(50, 400), counts_per_cell=20_000.0, seed=1,
    ).cells  # fmt: skip
    cells.X = lognorm(cells.X.tocsr(), TARGET_SUM)
    cells.uns[KEY] = steval_record(made_by="benchmark", scale="lognorm", target_sum=TARGET_SUM, columns=Columns())
    names = sorted(set(cells.obs["target_gene"].astype(str)))
    backbone = {
        "kind": "llama", "hidden_size": options.hidden, "intermediate_size": 4 * options.hidden, "num_layers": options.layers,
        "num_heads": 4, "num_key_value_heads": 4, "head_dim": options.hidden // 4,
    }  # fmt: skip
    model = ModelConfig.parse(
        {"input_dim": NUM_GENES, "output_dim": NUM_GENES, "pert_dim": len(names), "hidden_dim": options.hidden,
         "cell_set_size": 64, "backbone": backbone}
    )  # fmt: skip
    network = StateTransition(model)
    network.reset(torch.Generator().manual_seed(1))
    columns = Columns()
    known = cells[~((cells.obs["cell_type"] == "Y") & (cells.obs["target_gene"] != columns.control)).to_numpy()]
    manifest = Manifest(
        made_by="benchmark", model=model, input_genes=tuple(cells.var_names), output_genes=tuple(cells.var_names), scale="lognorm",
        target_sum=TARGET_SUM, perturbations=tuple(PerturbationEntry(name=name) for name in names), columns=columns,
        cell_types=("X", "Y"),
    )  # fmt: skip
    save_checkpoint(
        path, manifest=manifest, weights=network.state_dict(), features=torch.eye(len(names)),
        effects=measure_file(CellFile.wrap(known.copy()), columns)[0],
    )  # fmt: skip
    return load_checkpoint(path), CellFile.wrap(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--perturbations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint, cells = made_checkpoint(options, Path(directory) / "model.safetensors")
        pool = cell_controls(cells, checkpoint.manifest)
        predictors = {name: Predictor(checkpoint, device="cpu", decoding=one) for name, one in DECODINGS.items()}
        for num_cells in options.cells:
            rates: dict[str, list[float]] = {name: [] for name in predictors}
            for repeat in range(options.repeats + 1):
                for name, predictor in predictors.items():
                    items = tuple(
                        RequestItem(perturbation=one, cell_type="Y", num_cells=num_cells) for one in predictor.known
                    )
                    started = time.perf_counter()
                    plan = predictor.plan(PredictionRequest(items=items, seed=repeat), pool)
                    count = sum(block.cells.shape[0] for block in predictor.blocks(plan, sparse=True))
                    if repeat:  # the first loads kernels
                        rates[name].append(count / (time.perf_counter() - started))
            sizes = f"hidden {options.hidden}, {options.layers} layers"
            print(f"{num_cells} cells of each of {options.perturbations} perturbations, {sizes}:")
            for name, found in rates.items():
                print(f"  {name:28s} {statistics.median(found):8.0f} cells/s ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
