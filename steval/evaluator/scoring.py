"""`score()`: metrics of a prediction beside baselines, ceiling, intervals and integrity checks; the room's front door.

report = score("pred.h5ad", "real.h5ad", train="train.h5ad")
report.score, report.breakdown, report.integrity
write_score_dir(report, "scores/run1")
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from steval.data.cells.scale import Scale
from steval.data.columns import Columns
from steval.errors import ConfigError
from steval.evaluator.assembly import assemble
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import CellSource
from steval.evaluator.clock import Clock
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.training import read_training
from steval.evaluator.report.report import Report
from steval.evaluator.stages import IntegrityLevel, ScoreOptions, ScoreWork


def score(
    pred: CellSource,
    real: CellSource,
    *,
    columns: Columns | None = None,
    train: CellSource | None = None,
    train_rows: np.ndarray | None = None,
    profile: str = "vcc",
    metrics: Sequence[str] | None = None,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    ceiling: bool = False,
    integrity: IntegrityLevel = "basic",
    metrics_only: bool = False,
    by: str | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    splits: int = 3,
    cache_dir: Path | None = None,
    threads: int | None = None,
    de_real: pl.DataFrame | None = None,
    de_pred: pl.DataFrame | None = None,
    scale: Scale | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    model_record: dict[str, Any] | None = None,
) -> Report:
    """Score predicted against real cells: paths to h5ad, `AnnData` or `CellFile`, lognorm.

    `train` (its rows `train_rows` only, where given) makes the baselines; without it there are raw metrics only.
    `features` (perturbation → vector) add the ridge baseline. `by="cell_type"` scores each cell type on its own.
    `metrics_only` leaves out baselines, intervals and checks. `de_real`, `de_pred`: DE tables with pdex's columns.
    `cache_dir` keeps what depends on the real side alone from run to run. `model_record`: any JSON about the predictor,
    shown in the report. Raises `EvaluationError` or `DataError` where the cells do not fit, `ConfigError` for options.
    """
    options = ScoreOptions(
        metrics=tuple(metrics) if metrics else profile,
        metric_options=metric_options or {},
        ceiling=ceiling,
        integrity=integrity,
        metrics_only=metrics_only,
        by=by,
        seed=seed,
        bootstrap=bootstrap,
        splits=splits,
        threads=threads,
    )
    _validate(options, de_real, de_pred)
    clock = Clock()
    with ExitStack() as stack:
        cache = cache_dir or Path(stack.enter_context(TemporaryDirectory(prefix="steval-score-")))
        with clock.stage("open"):
            pair = stack.enter_context(Pair.build(pred, real, columns, scale=scale))
        training = None
        if train is not None and not metrics_only:
            with clock.stage("training cells"):
                training = read_training(
                    train, pair.genes, pair.columns, pair.perturbations, rows=train_rows, scale=scale
                )
                stack.callback(training.cells.close)
        work = ScoreWork(options, training, features, cache, clock)
        pairs: dict[str | None, Pair] = {None: pair} if by is None else dict(pair.by_cell_type())
        with ThreadPoolExecutor(1) as background:
            background.submit(pair.pred.digest)  # for the record; an error comes again when it is asked for
            parts = {name: work.run(one, de_real, de_pred) for name, one in pairs.items()}
        return assemble(work, parts, pair, model_record)


def _validate(options: ScoreOptions, de_real: pl.DataFrame | None, de_pred: pl.DataFrame | None) -> None:
    resolve(options.metrics)
    problems = []
    if options.by not in (None, "cell_type"):
        problems.append(f"by: cells are scored together (None) or by 'cell_type', got {options.by!r}")
    if options.by is not None and (de_real is not None or de_pred is not None):
        problems.append("de_real, de_pred: tables made elsewhere hold for all cells together, not by cell type")
    if options.integrity not in ("none", "basic", "full"):
        problems.append(f"integrity: 'basic', 'full' or 'none', got {options.integrity!r}")
    if options.bootstrap < 0:
        problems.append(f"bootstrap: a number of resamples, 0 or more, got {options.bootstrap}")
    if options.splits < 1:
        problems.append(f"splits: at least 1 split of the real cells, got {options.splits}")
    if problems:
        raise ConfigError("the scoring options are not valid", problems)
