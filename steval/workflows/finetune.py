"""Fine-tuning with what other rooms add: a quick cell-eval of held-out perturbations, and the service's warm-up record."""

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steval.checkpoints.manifest import WarmupRecord
from steval.checkpoints.store import Checkpoint, load_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.writer import require_finite
from steval.data.labels import labels_of
from steval.data.splits.selection import open_reference
from steval.errors import CheckpointError, ConfigError, NotFiniteError
from steval.predictor.controls import cell_controls, checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.request_files import items_of
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.signals import TerminatedError
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.notices import Tell
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.stopping import RunInterrupted
from steval.trainer.run import RunResult, finetune, rehearse
from steval.workflows.checkpoints.calibrate import calibration_notice

CALIBRATING = "calibrating"
"""Status in `run.json` of a run that has taken its steps and whose decoding is being chosen."""
WARMUP_CELLS = 8
WARMUP_GENES = 64
QUICK_CELLS = 200
"""Cells of each perturbation in a quick evaluation at most."""


def finetune_with_evaluation(
    config: FinetuneConfig | None,
    run_dir: Path,
    *,
    init_from: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    allow_mismatch: bool = False,
    from_nothing: bool = False,
    data_dirs: Sequence[Path] = (),
    report: Tell | None = None,
) -> RunResult:
    """`steval.trainer.run.finetune` with quick evaluations (`checks.quick_eval_every`) and a warm-up record; same errors.

    A finished run's best checkpoint is calibrated: how its predictions become cells is chosen and written into it.
    """

    def finish(result: RunResult) -> None:
        if _is_to_be_calibrated(result):
            calibrate_run(result, report)

    return finetune(
        config,
        run_dir,
        init_from=init_from,
        resume=resume,
        overwrite=overwrite,
        device=device,
        allow_mismatch=allow_mismatch,
        from_nothing=from_nothing,
        data_dirs=data_dirs,
        quick_eval=quick_evaluation,
        warmup=warmup_record,
        report=report,
        finish=finish,
    )


def _is_to_be_calibrated(result: RunResult) -> bool:
    directory = RunDirectory(result.run_dir)
    return FinetuneConfig.load(directory.config_path).checks.calibrate and "calibration" not in directory.read_record()


def calibrate_run(result: RunResult, report: Tell | None = None) -> None:
    """Choose the decoding of a finished run's best checkpoint; what was chosen goes into the file and into `run.json`."""
    from steval.workflows.checkpoints.calibrate import calibrated, can_be_carried, write_calibrated

    checkpoint = load_checkpoint(result.best)
    if not can_be_carried(checkpoint.manifest):
        return
    started = time.perf_counter()
    directory = RunDirectory(result.run_dir)
    directory.update_record({"status": CALIBRATING})
    try:
        found = calibrated(checkpoint)
        write_calibrated(checkpoint, found, result.best)
    except KeyboardInterrupt as stopped:
        number = signal.SIGTERM if isinstance(stopped, TerminatedError) else signal.SIGINT
        raise RunInterrupted(
            "stopped while choosing how predictions become cells: till then the best checkpoint predicts what its network "
            f"puts out. Go on with: steval finetune --resume {directory.path}",
            number,
        ) from None
    record = {"decoding": found.decoding.as_dict(), **found.record, "seconds": round(time.perf_counter() - started, 1)}
    directory.update_record({"calibration": record, "status": "finished"})
    if report is not None:
        report(calibration_notice(found))


def rehearse_with_evaluation(
    config: FinetuneConfig,
    *,
    init_from: Path | None = None,
    device: str = "auto",
    allow_mismatch: bool = False,
    from_nothing: bool = False,
    report: Tell | None = None,
) -> None:
    """`steval.trainer.run.rehearse` of what `finetune_with_evaluation` would do; same errors, and nothing is written."""
    rehearse(
        config, init_from=init_from, device=device, allow_mismatch=allow_mismatch, from_nothing=from_nothing,
        quick_eval=quick_evaluation, report=report,
    )  # fmt: skip


def quick_evaluation(checkpoint: Checkpoint) -> Mapping[str, float]:
    """cell-eval's `vcc` metrics of the checkpoint on the validation cells of its training data, means over perturbations.

    Every validation perturbation is predicted, with at most `QUICK_CELLS` cells, from the measured controls.
    """
    from steval.evaluator.scoring import score

    manifest = checkpoint.manifest
    if manifest.training_data is None or manifest.output_genes is None:
        raise ConfigError("a quick evaluation needs training data on record and a model that predicts genes")
    validation = manifest.training_data.model_copy(update={"part": "val", "perturbations": ()})
    with open_reference(validation, genes=manifest.output_genes) as real:
        predicted = _predict_in_memory(checkpoint, real)
        report = score(predicted, real, columns=manifest.columns, profile="vcc", metrics_only=True)
    return {row["metric"]: row["value"] for row in report.breakdown.iter_rows(named=True) if row["value"] is not None}


def warmup_record(checkpoint: Checkpoint) -> WarmupRecord | None:
    """A small prediction from the checkpoint's own controls; None where it carries none."""
    if checkpoint.controls is None:
        return None
    predictor = Predictor(checkpoint, device="cpu")
    pool = checkpoint_controls(checkpoint)
    name, cell_type = predictor.known[0], pool.cell_type_names[0]
    item = RequestItem(perturbation=name, num_cells=WARMUP_CELLS, cell_type=cell_type)
    cells = np.concatenate([block.cells for block in predictor.predict(PredictionRequest(items=(item,)), pool)])
    try:
        require_finite(cells, f"the predicted cells of {name!r}")
    except NotFiniteError as error:
        raise CheckpointError(
            f"the network predicts values that are not finite, so it is no checkpoint to use: {error}. Its weights have "
            "grown out of range: train with a lower rate, or take an earlier checkpoint"
        ) from error
    mean = cells[:, :WARMUP_GENES].astype(np.float64).mean(axis=0)
    return WarmupRecord(perturbation=name, num_cells=WARMUP_CELLS, seed=0, mean=tuple(float(value) for value in mean))


def _predict_in_memory(checkpoint: Checkpoint, real: CellFile) -> Any:
    """Predicted cells and the measured controls as AnnData, as `steval predict` would write them."""
    import anndata as ad
    import pandas as pd

    columns = checkpoint.manifest.columns
    items = tuple(
        item.model_copy(update={"num_cells": min(item.num_cells, QUICK_CELLS)}) for item in items_of(real, columns)
    )
    pool = cell_controls(real, checkpoint.manifest)
    predictor = Predictor(checkpoint, device="cpu")
    sets = list(predictor.predict(PredictionRequest(items=items), pool))
    controls = np.flatnonzero(labels_of(real.obs, columns.perturbation, real.name) == columns.control)
    labels = [columns.control] * len(controls) + [s.perturbation for s in sets for _ in range(len(s.cells))]
    cells = np.concatenate([real.rows(controls).toarray(), *(s.cells for s in sets)])
    obs = pd.DataFrame({columns.perturbation: labels}, index=pd.Index([str(row) for row in range(len(labels))]))
    return ad.AnnData(X=cells, obs=obs, var=pd.DataFrame(index=pd.Index(real.genes)))
