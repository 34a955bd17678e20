"""`score()`: metrics of a prediction beside baselines, ceiling, intervals and integrity checks; the room's front door.

report = score("pred.h5ad", "real.h5ad", train="train.h5ad")
report.score, report.breakdown, report.integrity
write_score_dir(report, "scores/run1")
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steval.data.cells.scale import Scale
from steval.data.columns import Columns
from steval.errors import ConfigError, EvaluationError
from steval.evaluator.assembly import assemble
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import CellSource
from steval.evaluator.clock import Clock
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.metrics.count_inputs import own_genes
from steval.evaluator.metrics.profiles import context_column, resolve, scored_scale, takers
from steval.evaluator.reference.baselines import require_contexts
from steval.evaluator.reference.training import read_training
from steval.evaluator.report.report import ScoreReport
from steval.evaluator.settings import ScoreSettings
from steval.evaluator.stages import ScoreWork


def score(
    pred: CellSource,
    real: CellSource,
    *,
    columns: Columns | None = None,
    train: CellSource | None = None,
    train_rows: np.ndarray | None = None,
    settings: ScoreSettings | None = None,
    cache_dir: Path | None = None,
    threads: int | None = None,
    engine: Engine = HOST,
    de_real: pl.DataFrame | None = None,
    de_pred: pl.DataFrame | None = None,
    scale: Scale | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    model_record: dict[str, Any] | None = None,
    **options: Any,
) -> ScoreReport:
    """Score predicted against real cells: paths to h5ad, `AnnData` or `CellFile`, on the scale that the profile takes.

    `settings` says how to score; instead of it, or to change it, its fields may be given by name: `score(..., ceiling=True)`.
    `train` (its rows `train_rows` only, where given) makes the baselines; without it there are raw metrics only.
    `features` (perturbation → vector) add the ridge baseline. `de_real`, `de_pred`: DE tables with pdex's columns.
    `cache_dir` keeps what depends on the real side alone from run to run. `model_record`: any JSON about the predictor,
    shown in the report. `engine`: what ranks and distances are computed on (`measure.engine`). Raises `EvaluationError` or
    `DataError` where the cells do not fit, `ConfigError` for options.
    """
    how = _settled(settings or ScoreSettings(), options)
    resolve(how.chosen)
    _refuse_tables(how, de_real, de_pred)
    clock = Clock()
    with ExitStack() as stack:
        with clock.stage("open"):
            pair = stack.enter_context(_opened(pred, real, columns, scale, how))
            how, pair = _by_context(how, pair)
        training = None
        if train is not None and not how.metrics_only:
            with clock.stage("training cells"):
                training = read_training(
                    train, pair.genes, pair.columns, pair.perturbations, rows=train_rows, scale=scale,
                    takes=pair.scale_real.scale, context=(columns or Columns()).cell_type,
                )  # fmt: skip
                stack.callback(training.cells.close)
                if training.fold_changes is None:  # on counts, baselines start from the measured controls
                    require_contexts(pair, training)
        work = ScoreWork(how, training, features, cache_dir, clock, threads, engine)
        pairs: dict[str | None, Pair] = {None: pair} if how.by is None else dict(pair.by_cell_type())
        with ThreadPoolExecutor(1) as background:
            for side in (pair.stored_pred, pair.real):
                background.submit(side.digest)  # for the record; an error comes again when it is asked for
            parts = {name: work.run(one, de_real, de_pred) for name, one in pairs.items()}
        return assemble(work, parts, pair, model_record)


def _refuse_tables(how: ScoreSettings, *tables: pl.DataFrame | None) -> None:
    if all(table is None for table in tables):
        return
    if how.by is not None:
        problem = "de_real, de_pred: tables made elsewhere hold for all cells together, not by cell type"
        raise ConfigError("the scoring options are not valid", [problem])
    if scored_scale(how.chosen) == "counts":
        problem = "de_real, de_pred: on counts, differential expression is computed from the cells that are scored"
        raise ConfigError("the scoring options are not valid", [problem])


def _opened(
    pred: CellSource, real: CellSource, columns: Columns | None, scale: Scale | None, how: ScoreSettings
) -> Pair:
    """Both sides, on the scale that the metrics take; a scale that others take is refused with their names."""
    takes = scored_scale(how.chosen)
    others: tuple[Scale, ...] = ("counts", "lognorm")
    otherwise: dict[Scale, str] = {
        other: f"--profile {takers(other)} takes {other}" for other in others if other != takes
    }
    pair = Pair.build(pred, real, columns, scale=scale, takes=takes, otherwise=otherwise)
    if takes == "counts":
        with ExitStack() as on_error:
            on_error.callback(pair.close)
            own_genes(pair.perturbations, pair.genes)
            on_error.pop_all()
    return pair


def _by_context(how: ScoreSettings, pair: Pair) -> tuple[ScoreSettings, Pair]:
    """Settings and pair where cells are scored by context: because it is asked for, or because the profile does."""
    column = context_column(how.chosen)
    if how.by is None and column is not None:
        have = [column in side.file.obs for side in (pair.stored_pred, pair.real)]
        if all(have):
            how = how.model_copy(update={"by": "context"})
        elif any(have):
            which = ("the predicted cells", "the real cells")
            raise EvaluationError(
                f"{which[have.index(True)]} have the obs column {column!r}, {which[have.index(False)]} do not; contexts are "
                "scored apart, so give both sides the column, or neither"
            )
    if how.by == "context":
        columns = pair.columns.model_copy(update={"cell_type": column or "context"})
        return how, replace(pair, columns=columns)
    return how, pair


def _settled(settings: ScoreSettings, options: Mapping[str, Any]) -> ScoreSettings:
    """`settings` with the `options` that are given put over them; None gives nothing."""
    given = {name: value for name, value in options.items() if value is not None}
    return ScoreSettings.parse({**dict(settings), **given}, source="the set of scoring options")
