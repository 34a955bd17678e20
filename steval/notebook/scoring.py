"""Scoring in a notebook."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions, resolve_columns
from steval.errors import ConfigError
from steval.evaluator.report.report import ScoreReport
from steval.evaluator.scoring import score as score_cells
from steval.notebook.cells import CellsInput, opened
from steval.notebook.model import Model


def score(
    pred: CellsInput,
    real: CellsInput,
    *,
    train: CellsInput | None = None,
    model: Model | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> ScoreReport:
    """Predicted against real cells with cell-eval's metrics, beside simple models made of the `train` cells; as `steval score`.

    `model`: the model that predicted, for the record. `columns`: where the labels are (`{"perturbation": …, "control": …}`),
    where the real cells do not say. `options`: `profile="vcc"`, `metrics=[…]`, `ceiling=True`, `by="cell_type"` and the other
    fields of `steval.evaluator.settings.ScoreSettings`. Nothing is written; `sv.write_score(report, DIR)` does. Raises
    `EvaluationError`, `DataError` or `ConfigError`.
    """
    record = None if model is None else {"checkpoint": str(model.path), "licence": model.checkpoint.manifest.licence}
    with ExitStack() as stack:
        sides = {"the predicted cells": pred, "the real cells": real, "the training cells": train}
        found: dict[str, CellFile] = {
            name: stack.enter_context(opened(cells, name)) for name, cells in sides.items() if cells is not None
        }
        if "the real cells" not in found:
            raise ConfigError("score takes the predicted and the real cells: sv.score(pred, real, train=…)")
        measured = found["the real cells"]
        asked = ColumnOptions.parse(dict(columns or {}), source="columns")
        resolved = resolve_columns(measured.obs, measured.record, asked, source=measured.name)
        return score_cells(
            found["the predicted cells"], measured.labelled(resolved, "perturbation"), columns=resolved,
            train=found.get("the training cells"), model_record=record, **options,
        )  # fmt: skip
