"""`steval demo`: the whole main job on cells that ship with the package, or on generated ones with known effects."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steval.data.cells.cellfile import CellFile, read_anndata, write_anndata
from steval.data.cells.prepare import PrepareSettings, prepare
from steval.data.columns import Columns
from steval.data.example import example_path
from steval.data.files import atomic_path
from steval.data.labels import labels_of
from steval.data.outputs import real_path
from steval.data.splits.assignment import CellSplit, assign_parts
from steval.data.synthetic import CHALLENGE_GENES, generate
from steval.errors import ConfigError
from steval.settings import read_yaml

if TYPE_CHECKING:
    from steval.evaluator.report.report import ScoreReport

logger = logging.getLogger(__name__)

CONFIG_PATH = Path(__file__).with_name("demo.yaml")
SYNTHETIC_OVERRIDES = ("phases.0.steps=60", "phases.1.steps=140", "sets.per_batch=4", "checks.validate_every=40")
HELD_OUT = CellSplit(val=0.1, test=0.4, seed=0)
"""Its test cells are the evaluation data; all others are fine-tuned on, with a split of their own."""


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and what came out."""

    directory: Path
    checkpoint: Path
    preds: Path
    score_dir: Path
    report: "ScoreReport"
    recovered: pd.DataFrame | None
    """Synthetic cells only: correlation of predicted with known log fold changes, by perturbation."""


def run_demo(
    directory: Path,
    *,
    synthetic: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
    announce: Callable[[str], None] = logger.info,
) -> DemoResult:
    """Prepare, fine-tune, predict, score, report; everything lands in `directory`.

    An existing directory is a `ConfigError` unless `overwrite`. `announce` is told of each step.
    """
    from steval.workflows.finetune import finetune_with_evaluation
    from steval.workflows.predict import predict_as_in
    from steval.workflows.score import ScoreRequest, score_predictions

    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; name a directory with --out DIR")
    if directory.exists() and any(directory.iterdir()) and not overwrite:
        raise ConfigError(f"{directory} is there already; use --overwrite, or another place with --out DIR")
    config = _write_config(directory, (*(SYNTHETIC_OVERRIDES if synthetic else ()), *overrides))
    announce("1/4 prepare: counts -> lognorm, hold cells out for the evaluation")
    effects = _write_data(directory / "data", synthetic)
    announce(
        "2/4 fine-tune: backbone frozen, then all unfrozen, as from a pre-trained model; this one starts from nothing"
    )
    run = finetune_with_evaluation(config, directory / "run", overwrite=overwrite, device=device)
    announce("3/4 predict: the held-out cells' perturbations")
    preds = directory / "preds.h5ad"
    with CellFile.open(directory / "data" / "evaluation.h5ad") as evaluation:
        predict_as_in(run.best, evaluation, Columns.parse(evaluation.record["columns"]), preds, device=device)
    announce("4/4 score: cell-eval's metrics against the held-out cells, beside simple models")
    report, score_dir = score_predictions(ScoreRequest(preds=preds, checkpoint=run.best))
    recovered = None if effects is None else _recovery(preds, effects)
    return DemoResult(directory, run.best, preds, score_dir, report, recovered)


def _write_data(directory: Path, synthetic: bool) -> pd.DataFrame | None:
    """prepared.h5ad, train.h5ad and evaluation.h5ad; returns the known effects of synthetic cells."""
    directory.mkdir(parents=True, exist_ok=True)
    source, effects = example_path(), None
    if synthetic:
        screen = generate(num_genes=CHALLENGE_GENES, num_perturbations=8, cells_per_perturbation=100, num_controls=300)
        source, effects = directory / "counts.h5ad", screen.effects
        write_anndata(screen.cells, source)
    settings = PrepareSettings() if synthetic else PrepareSettings(cell_type_name="H1")
    prepare(source, directory / "prepared.h5ad", settings=settings)
    cells = read_anndata(directory / "prepared.h5ad")
    columns = Columns()
    parts = assign_parts(pd.DataFrame(cells.obs), columns, HELD_OUT)
    is_control = (cells.obs[columns.perturbation] == columns.control).to_numpy()
    held_out = parts == 2
    write_anndata(cells[~held_out | is_control].copy(), directory / "train.h5ad")
    write_anndata(cells[held_out | is_control].copy(), directory / "evaluation.h5ad")
    return effects


def _write_config(directory: Path, overrides: tuple[str, ...]) -> Any:
    """The demo's configuration with absolute data paths, written to `config.yaml` in the demo directory."""
    from steval.trainer.config import FinetuneConfig

    data = real_path(directory / "data")
    values = read_yaml(CONFIG_PATH)
    values["data"] |= {"files": [str(data / "train.h5ad")], "evaluation_file": str(data / "evaluation.h5ad")}
    config = FinetuneConfig.parse_with(values, overrides, "the demo's config")
    with atomic_path(directory / "config.yaml") as partial:
        partial.write_text(config.to_yaml(), encoding="utf-8")
    return config


def _recovery(preds: Path, effects: pd.DataFrame) -> pd.DataFrame:
    """How well predicted mean changes follow the known log fold changes, over the genes that are expressed and changed."""
    columns = Columns()
    with CellFile.open(preds) as cells:
        labels = labels_of(cells.obs, columns.perturbation, cells.name)
        groups = {name: cells.rows(np.flatnonzero(labels == name)).toarray() for name in np.unique(labels)}
        position = pd.Index(cells.genes)
    means = {name: np.expm1(group).mean(axis=0) for name, group in groups.items()}
    control, rows = means[columns.control], []
    for name, truth in effects.groupby("perturbation"):
        genes = position.get_indexer(truth["gene"])
        kept = control[genes] > 0.5
        change = np.log((means[name][genes][kept] + 0.1) / (control[genes][kept] + 0.1))
        rows.append((name, int(kept.sum()), float(np.corrcoef(change, truth["log_fold_change"][kept])[0, 1])))
    return pd.DataFrame.from_records(rows, columns=["perturbation", "changed_genes", "correlation"])
