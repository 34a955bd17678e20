"""A submission of 2026 end to end, generated: three contexts' control cells and a checkpoint -> predicted counts -> `.vcc`.

    python benchmarks/challenge.py DIR                      # 300 perturbations x 400 cells x 3 contexts, 18,533 genes
    python benchmarks/challenge.py DIR --small --peer PYTHON  # 40 x 60 x 3; beside `vcc prep` of that Python

Prints seconds, peak memory and file sizes of `steval predict` and `steval pack`. The checkpoint decodes as fine-tuned ones mostly
do: a simple model's effect carried by measured control cells. Files are left in DIR (full size: about 20 GB).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import save_checkpoint
from steval.data.cells.record import steval_record
from steval.data.cells.scale import lognorm
from steval.data.cells.writer import CellWriter
from steval.data.columns import Columns
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.record import TrainingEffects
from steval.model.config import ModelConfig
from steval.model.network import StateTransition

TARGET_SUM = 10_000.0
CONTEXTS = ("A", "B", "C")
CONTROL = "non-targeting"
DEPTH = 14_000
BLOCK = 500


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--peer", help="a Python with vcc-cli")
    options = parser.parse_args()
    num_perturbations, num_cells, num_genes, num_controls = (
        (40, 60, 18_533, 500) if options.small else (300, 400, 18_533, 5_000)
    )
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    genes = [f"gene{number}" for number in range(num_genes)]
    names = genes[100 : 100 + num_perturbations]
    write_lists(directory, genes, names, num_cells)
    write_controls(directory, genes, num_controls)
    write_checkpoint(directory / "model.safetensors", genes, names)
    preds, out = directory / "preds.h5ad", directory / "out.vcc"
    controls = [part for name in CONTEXTS for part in ("--contexts", f"{name}={directory / f'controls-{name}.h5ad'}")]
    asked = ["--request", directory / "pert_counts.csv", "--scale", "counts", "-o", preds]
    lists = ["--genes", directory / "gene_names.csv", "--perts", directory / "pert_counts.csv"]
    steval = [sys.executable, "-m", "steval"]
    timed("steval predict", [*steval, "predict", directory / "model.safetensors", *asked, *controls])
    print(f"  {preds.stat().st_size / 2**30:.2f} GiB")
    timed("steval pack", [*steval, "pack", preds, "-o", out, *lists])
    print(f"  {out.stat().st_size / 2**30:.2f} GiB")
    if options.peer:
        theirs = directory / "theirs.vcc"
        vcc = [options.peer, "-m", "vcc", "prep", preds, "-g", lists[1], "--perts", lists[3], "-o", theirs, "-f"]
        timed("vcc prep", vcc)
        print(f"  {theirs.stat().st_size / 2**30:.2f} GiB")


def write_lists(directory: Path, genes: list[str], names: list[str], num_cells: int) -> None:
    """The bundle's lists and manifest."""
    (directory / "gene_names.csv").write_text("\n".join(["gene_name", *genes]) + "\n")
    lines = [f"{name},{num_cells}" for name in names]
    (directory / "pert_counts.csv").write_text("\n".join(["target_gene,n_cells", *lines]) + "\n")
    (directory / "manifest.json").write_text(json.dumps({"contexts": list(CONTEXTS)}))


def write_controls(directory: Path, genes: list[str], num_cells: int) -> None:
    """Lognorm control cells of each context whose counts have about a quarter of the genes."""
    for number, context in enumerate(CONTEXTS):
        rng = np.random.default_rng(number)
        share = rng.lognormal(0, 2.0, len(genes))
        share /= share.sum()
        columns = Columns(batch=None)
        record = steval_record(made_by="benchmark", scale="lognorm", target_sum=TARGET_SUM, columns=columns)
        stored = total = 0
        with CellWriter(directory / f"controls-{context}.h5ad", genes, record, compression="none") as writer:
            for start in range(0, num_cells, BLOCK):
                size = min(BLOCK, num_cells - start)
                depth = DEPTH * rng.lognormal(0, 0.3, (size, 1))
                counts = sp.csr_matrix(
                    rng.poisson(depth * share * rng.gamma(5.0, 0.2, (size, len(genes)))).astype(np.float32)
                )
                writer.append(
                    lognorm(counts, TARGET_SUM), {"target_gene": [CONTROL] * size, "cell_type": [context] * size}
                )
                stored, total = stored + counts.nnz, total + size * len(genes)
        print(f"controls {context}: {num_cells} cells, {stored / total:.3f} of their values are not 0")


def write_checkpoint(path: Path, genes: list[str], names: list[str]) -> None:
    """A small network with training effects of two other contexts: 200 genes of each perturbation change."""
    backbone = {
        "kind": "llama", "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 4,
        "head_dim": 16,
    }  # fmt: skip
    config = ModelConfig.parse(
        {
            "input_dim": len(genes), "output_dim": len(genes), "pert_dim": len(names) + 1, "hidden_dim": 64, "backbone": backbone,
            "cell_set_size": 64,
        }
    )  # fmt: skip
    network = StateTransition(config)
    network.reset(torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    pairs = [(name, context) for name in range(len(names)) for context in range(2)]
    effects = rng.normal(0, 0.01, (len(pairs), len(genes)))
    for row, (name, _) in enumerate(pairs):
        chosen = np.random.default_rng(name)
        effects[row, chosen.integers(0, len(genes), 200)] += chosen.normal(0, 0.4, 200)
    record = TrainingEffects(
        perturbations=tuple(sorted(names)),
        contexts=("K562", "RPE1"),
        perturbation_codes=np.array([pair[0] for pair in pairs], dtype=np.int32),
        context_codes=np.array([pair[1] for pair in pairs], dtype=np.int32),
        num_cells=np.full(len(pairs), 200, dtype=np.int32),
        effects=effects.astype(np.float32),
        control_means=rng.gamma(0.5, 0.6, (2, len(genes))).astype(np.float32),
        num_controls=np.full(2, 5000, dtype=np.int32),
        cell_variance=np.full((2, len(genes)), 0.05, dtype=np.float32),
    )
    manifest = Manifest(
        made_by="benchmark",
        model=config,
        input_genes=tuple(genes),
        output_genes=tuple(genes),
        scale="lognorm",
        target_sum=TARGET_SUM,
        perturbations=tuple(PerturbationEntry(name=name) for name in [*names, CONTROL]),
        columns=Columns(),
        cell_types=("K562", "RPE1"),
        batches=(),
        decoding=DecodingSettings(kind="carried", anchor=AnchorSettings(), network_weight=0.0),
    )
    features = torch.eye(len(names) + 1)
    save_checkpoint(path, manifest=manifest, weights=network.state_dict(), features=features, effects=record)


def timed(what: str, command: list[object]) -> None:
    """Run a command; print seconds, processor seconds and the most memory it held."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    print(
        f"{what}: {seconds:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} processor seconds, {usage.ru_maxrss / 2**20:.2f} GiB",
        flush=True,
    )
    if status:
        raise SystemExit(f"{what} failed")


if __name__ == "__main__":
    main()
