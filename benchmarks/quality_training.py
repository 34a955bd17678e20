#!/usr/bin/env python
"""Scores of what a user can choose when fine-tuning, three seeds each: mean and spread.

    python benchmarks/quality_training.py thp1_rep1_rep2.h5ad --work quality -o quality.json

The file holds the raw counts of a THP-1 knock-out screen in two replicates (decision 003 says where it comes from and what the
task is). Parts, chosen with --parts:

    task       recipe quick-cpu from nothing; 3,000 steps of it, last weights, as the prototype of docs/decisions/003 trained;
               held-out perturbations of rep_2; baselines beside it
    transfer   pre-trained on rep_1, fine-tuned on rep_2: frozen, staged, full, and from nothing, at equal steps
    space      embedding input (50 principal components, gene decoder) against expression, from nothing, at equal steps
    auxiliary  the principal components as a second target: distilled, contrasted, both, against neither
    generated  generated cells of two cell types: pre-trained on one, fine-tuned on the other (needs no file)

A run that is finished in --work is not repeated. Scores are cell-eval's metrics, by steval's evaluator, of as many cells as
were measured; rows `, 1,280 cells` predict so many of each perturbation.
"""

import argparse
import csv
import json
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

from steval.checkpoints.store import load_checkpoint
from steval.data.cells.cellfile import CellFile, write_anndata
from steval.data.cells.prepare import PrepareSettings, prepare
from steval.data.columns import ColumnOptions
from steval.data.reference import DataReference
from steval.data.splits.selection import open_reference
from steval.data.synthetic import generate
from steval.evaluator.scoring import score
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.requests import PredictionRequest
from steval.settings import apply_overrides, read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import recipe_path
from steval.trainer.run import finetune
from steval.workflows.predict import request_items

METRICS = {
    "mae": "MAE",
    "discrimination_score_l1": "discrimination L1",
    "pearson_delta": "Pearson delta",
    "overlap_at_N": "overlap at N",
}
VALIDATION = ["CUL3", "IFNGR2", "IRF1", "STAT3"]
TEST = ["ATF2", "BRD4", "CAV1", "CD86", "IFNGR1", "IRF7", "JAK2", "MARCH8", "NFKBIA", "SMAD4", "STAT1", "STAT2"]
MANY_CELLS = 1280
COMPONENTS = 50
PRETRAINING_STEPS = 500
TUNING_STEPS = 300
SPACE_STEPS = 300
SMALL = ("network={hidden_dim: 64, num_layers: 3, num_heads: 4, intermediate_dim: 128, head: plain}",)
STAGES = ("phases.1.top_blocks=1", "phases.2.top_blocks=1")
"""Three blocks: one each at the top, in the middle and below."""


@dataclass(frozen=True)
class Plan:
    """One way to train: a recipe, changed, from nothing or from another plan's checkpoint of the same seed."""

    name: str
    data: dict[str, Any]
    recipe: str = "quick-cpu"
    changes: tuple[str, ...] = ()
    steps: int | None = None
    """Of all phases together, shared out in the recipe's proportions; none: the recipe's own."""
    init_from: str | None = None
    parts: tuple[str, ...] = ("val",)
    """Parts of the split that are scored."""
    cells: tuple[int, ...] = (0,)
    """Predicted cells of each perturbation; 0: as many as were measured."""


@dataclass
class Bench:
    """Runs and scores under one directory."""

    work: Path
    threads: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, plan: Plan, seed: int) -> None:
        """Train and score a plan with one seed, unless that was done before."""
        directory = self.work / "runs" / f"{plan.name}-{seed}"
        done = directory / "quality.json"
        if not done.exists():
            done.write_text(json.dumps(self._measure(plan, seed, directory)))
        self.rows += json.loads(done.read_text())

    def _measure(self, plan: Plan, seed: int, directory: Path) -> list[dict[str, Any]]:
        torch.set_num_threads(self.threads)
        start = self.work / "runs" / f"{plan.init_from}-{seed}" / "checkpoints" / "best-val.safetensors"
        wall, processor = time.perf_counter(), time.process_time()
        result = finetune(
            configuration(plan, seed),
            directory,
            init_from=start if plan.init_from else None,
            overwrite=True,
            device="cpu",
            allow_mismatch="space" in plan.name,
        )
        if not result.finished:
            raise SystemExit(f"{directory} was stopped at step {result.step}; run the command again")
        common = {
            "plan": plan.name,
            "seed": seed,
            "steps": result.step,
            "best_step": result.best_record["step"],
            "validation_loss": result.best_record["value"],
            "last_validation_loss": _last_validation(directory / "metrics.csv"),
            "training_seconds": result.seconds,
            "wall_seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
        }
        return [
            {**common, "part": part, "cells": cells, **self._scored(result.best, part, cells)}
            for part in plan.parts
            for cells in plan.cells
        ]

    def _scored(self, path: Path, part: str, cells: int) -> dict[str, float]:
        """cell-eval's metrics, means over the perturbations of a part."""
        checkpoint = load_checkpoint(path)
        manifest = checkpoint.manifest
        predictions = path.parent / f"{part}-{cells}.h5ad"
        with self._real(path, part) as real:
            items = request_items(real.obs, manifest.columns)
            items = tuple(item.model_copy(update={"num_cells": cells or item.num_cells}) for item in items)
            pool = cell_controls(real, manifest)
            predict_into(predictions, Predictor(checkpoint, device="cpu"), PredictionRequest(items=items), pool)
        with self._real(path, part) as real:
            report = score(predictions, real, columns=manifest.columns, metrics=tuple(METRICS), metrics_only=True)
        predictions.unlink()
        return dict(zip(report.breakdown["metric"], report.breakdown["value"], strict=True))

    def baselines(self, plan: Plan, seed: int, part: str) -> None:
        """Rows of the predictions that need no network."""
        path = self.work / "runs" / f"{plan.name}-{seed}" / "checkpoints" / "best-val.safetensors"
        manifest = load_checkpoint(path).manifest
        predictions = path.parent / "baselines.h5ad"
        with self._real(path, part) as real:
            items = request_items(real.obs, manifest.columns)
            predict_into(
                predictions, Predictor(load_checkpoint(path), device="cpu"), PredictionRequest(items=items),
                cell_controls(real, manifest),
            )  # fmt: skip
        assert manifest.training_data is not None
        with self._real(path, part) as real, open_reference(manifest.training_data) as train:
            report = score(
                predictions, real, columns=manifest.columns, train=train, metrics=tuple(METRICS), integrity="none",
                bootstrap=0,
            )  # fmt: skip
        predictions.unlink()
        for kind in ("control", "mean", "additive"):
            chosen = report.baselines.filter(report.baselines["baseline"] == kind)
            values = dict(zip(chosen["metric"], chosen["value"], strict=True))
            self.rows.append({"plan": f"baseline: {kind}", "seed": seed, "part": part, "cells": 0, **values})

    def _real(self, path: Path, part: str) -> CellFile:
        manifest = load_checkpoint(path).manifest
        assert manifest.training_data is not None
        reference: DataReference = manifest.training_data.model_copy(update={"part": part, "perturbations": ()})
        return open_reference(reference, genes=manifest.output_genes)


def configuration(plan: Plan, seed: int) -> FinetuneConfig:
    """The resolved configuration of a plan."""
    values = read_yaml(recipe_path(plan.recipe)) | {"data": plan.data, "seed": seed, "loggers": ["csv"]}
    if plan.steps is not None:
        total = sum(phase["steps"] for phase in values["phases"])
        for phase in values["phases"]:
            phase["steps"] = max(round(phase["steps"] * plan.steps / total), 1)
        values["checks"] = {"validate_every": 50, "log_every": 25, "save_every": 10_000}
    return FinetuneConfig.parse(apply_overrides(values, plan.changes), source=plan.name)


def task_plans(prepared: Path) -> list[Plan]:
    """The recipe, and the schedule of the prototype that the task came with: twice the steps, the last weights."""
    scored = {"parts": ("val", "test"), "cells": (0, MANY_CELLS)}
    longer = ("phases.0.steps=3000", "checks.validate_every=3000")
    return [
        Plan("task", replicates([prepared]), **scored),
        Plan("task, 3,000 steps, last weights", replicates([prepared]), changes=longer, **scored),
    ]


def replicates(files: Sequence[Path], **more: Any) -> dict[str, Any]:
    """The task: replicates are contexts; some perturbations of rep_2 validate, some test, everything else trains."""
    split = {"by": "contexts", "cell_type_key": "replicate", "val": {"rep_2": VALIDATION}, "test": {"rep_2": TEST}}
    return {"files": [str(file) for file in files], "columns": {"cell_type": "replicate"}, "split": split, **more}


def tuning_plans(name: str, first: dict[str, Any], second: dict[str, Any], network: tuple[str, ...]) -> list[Plan]:
    """Pre-training, then every way to go on with equally many steps."""
    rates = "phases.0.rates={encoders: 1.0e-3, outputs: 1.0e-3, backbone: 1.0e-3}"
    started = {"data": second, "steps": TUNING_STEPS, "parts": ("val", "test"), "init_from": f"{name}, pre-training"}
    still = "phases.0.rates={encoders: 1.0e-12, outputs: 1.0e-12}"
    sets = ("sets.size=32", "sets.per_batch=8")
    return [
        Plan(f"{name}, pre-training", first, "full", (*network, rates, *sets), steps=PRETRAINING_STEPS),
        Plan(f"{name}, not tuned", **{**started, "steps": 1}, recipe="frozen-only", changes=(still, *sets)),
        Plan(f"{name}, frozen-only", **started, recipe="frozen-only", changes=sets),
        Plan(f"{name}, raw-staged", **started, recipe="raw-staged", changes=(*sets, *STAGES)),
        Plan(f"{name}, full", **started, recipe="full", changes=sets),
        Plan(f"{name}, from nothing", **{**started, "init_from": None}, recipe="full", changes=(*network, rates, *sets)),
    ]  # fmt: skip


def space_plans(prepared: Path) -> list[Plan]:
    """Expression against principal components of expression, all else equal."""
    embedded = replicates([prepared], input_key="X_pca")
    return [
        Plan("space, expression", replicates([prepared]), steps=SPACE_STEPS, parts=("val", "test")),
        Plan("space, embedding", embedded, changes=("network.gene_decoder=[256]",), steps=SPACE_STEPS, parts=("val", "test")),
    ]  # fmt: skip


def auxiliary_plans(prepared: Path) -> list[Plan]:
    """Expression in and out, with and without losses on the principal components of the measured cells."""
    weights = {"distil": ("loss.distil=0.3",), "contrast": ("loss.contrast=0.3",)}
    weights["both"] = (*weights["distil"], *weights["contrast"])
    scored = {"parts": ("val", "test"), "cells": (0, MANY_CELLS)}
    read = replicates([prepared], auxiliary_key="X_pca")
    return [
        Plan("auxiliary, neither", replicates([prepared]), **scored),
        *(Plan(f"auxiliary, {name}", read, changes=changes, **scored) for name, changes in weights.items()),
    ]


def prepared_file(source: Path, work: Path) -> Path:
    """Lognorm to 200 per cell, cells of at least 20 counts; principal components of the training cells in `obsm`."""
    path = work / "thp1.h5ad"
    if path.exists():
        return path
    plain = work / "thp1-plain.h5ad"
    prepare(source, plain, options=ColumnOptions(), settings=PrepareSettings(target_sum=200, min_counts=20))
    cells = ad.read_h5ad(plain)
    held_out = cells.obs["target_gene"].isin([*VALIDATION, *TEST]) & (cells.obs["replicate"] == "rep_2")
    dense = cells.X.toarray().astype(np.float64)
    mean = dense[~held_out.to_numpy()].mean(axis=0)
    _, _, axes = np.linalg.svd(dense[~held_out.to_numpy()] - mean, full_matrices=False)
    cells.obsm["X_pca"] = ((dense - mean) @ axes[:COMPONENTS].T).astype(np.float32)
    write_anndata(cells, path)
    return path


def one_replicate(prepared: Path, name: str) -> Path:
    """The cells of one replicate as a file of their own."""
    path = prepared.with_name(f"{name}.h5ad")
    if not path.exists():
        cells = ad.read_h5ad(prepared)
        write_anndata(cells[cells.obs["replicate"] == name].copy(), path)
    return path


def transfer_plans(prepared: Path) -> list[Plan]:
    """rep_1 knows every perturbation; rep_2 lacks those that validate and test."""
    first = {"files": [str(one_replicate(prepared, "rep_1"))], "columns": {"cell_type": "replicate"},
             "split": {"by": "cells", "val": 0.1, "test": 0}}  # fmt: skip
    second = replicates([one_replicate(prepared, "rep_2")])
    return tuning_plans("transfer", first, second, SMALL)


def generated_plans(work: Path, seed: int) -> list[Plan]:
    """Two generated cell types whose effects correlate by 0.8; a third of the perturbations is held out in the second."""
    files = {name: work / f"generated-{seed}-{name}.h5ad" for name in ("first", "second")}
    if not all(path.exists() for path in files.values()):
        screen = generate(num_genes=200, num_perturbations=18, cells_per_perturbation=150, num_controls=400,
                          cell_types=("first", "second"), affected_genes=(5, 40), counts_per_cell=2000.0, seed=seed)  # fmt: skip
        for name, path in files.items():
            write_anndata(screen.cells[screen.cells.obs["cell_type"] == name].copy(), path)
    names = sorted(set(ad.read_h5ad(files["second"]).obs["target_gene"].astype(str)) - {"non-targeting"})
    first = {"files": [str(files["first"])], "target_sum": 2000, "split": {"by": "cells", "val": 0.1, "test": 0}}
    split = {
        "by": "contexts",
        "cell_type_key": "cell_type",
        "val": {"second": names[0:6:2]},
        "test": {"second": names[1:6:2]},
    }
    second = {"files": [str(files["second"])], "target_sum": 2000, "split": split}
    return tuning_plans("generated", first, second, SMALL)


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a row for each plan, part and number of cells; mean ± standard deviation over the seeds."""
    grouped: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["part"], row["cells"], row["plan"]), []).append(row)
    lines = []
    for part in sorted({key[0] for key in grouped}, reverse=True):
        lines += [
            f"\n**{part}**\n",
            "| | " + " | ".join([*METRICS.values(), "validation loss", "at the end", "training, s"]) + " |",
        ]
        lines.append("|" + "---|" * (len(METRICS) + 4))
        for (place, cells, plan), members in grouped.items():
            if place != part:
                continue
            label = plan + (f", {cells:,} cells" if cells else "")
            shown = [_spread([m.get(name) for m in members], 4 if name == "mae" else 3) for name in METRICS]
            shown += [
                _spread([m.get(name) for m in members], 4) for name in ("validation_loss", "last_validation_loss")
            ]
            shown.append(_spread([m.get("training_seconds") for m in members], 0))
            lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _last_validation(metrics: Path) -> float:
    with metrics.open() as file:
        return [float(row["val/gene"]) for row in csv.DictReader(file) if row.get("val/gene")][-1]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="thp1_rep1_rep2.h5ad, raw counts")
    parser.add_argument("--work", type=Path, default=Path("quality"), help="directory for data and runs")
    parser.add_argument("--parts", nargs="+", default=["task", "transfer", "space", "generated"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="JSON with every figure")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work, options.threads)
    prepared = prepared_file(options.data, options.work)
    for part in options.parts:
        for seed in options.seeds:
            plans = {
                "task": lambda: task_plans(prepared),
                "transfer": lambda: transfer_plans(prepared),
                "space": lambda: space_plans(prepared),
                "auxiliary": lambda: auxiliary_plans(prepared),
                "generated": lambda seed=seed: generated_plans(options.work, seed),
            }[part]()
            for plan in plans:
                bench.run(plan, seed)
            if part == "task" and seed == options.seeds[0]:
                for which in ("val", "test"):
                    bench.baselines(plans[0], seed, which)
    print(tables(bench.rows))
    if options.output:
        options.output.write_text(json.dumps(bench.rows, indent=1))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
