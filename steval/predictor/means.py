"""Mean profiles: one row for each item of a plan, summed up while its sets are predicted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.plan import PredictionPlan
from steval.predictor.requests import RequestItem


@dataclass(frozen=True)
class PredictedMean:
    """Mean of an item's predicted cells, float32 `[G]` on the checkpoint's scale."""

    item: RequestItem
    cell_type: str
    batch: str | None
    num_cells: int
    mean: np.ndarray


def predicted_means(plan: PredictionPlan, sets: Iterable[PredictedSet]) -> Iterator[PredictedMean]:
    """A mean for each item of `plan`, whose predicted `sets` come in order; only one item's sum is in memory."""
    held: PredictedSet | None = None
    total, count = np.zeros(0), 0
    for one in sets:
        if held is not None and one.planned.item != held.planned.item:
            yield _mean(plan, held, total, count)
            held = None
        if held is None:
            total, count = np.zeros(one.cells.shape[1]), 0
        held = one
        total += one.cells.sum(axis=0, dtype=np.float64)
        count += len(one.cells)
    if held is not None:
        yield _mean(plan, held, total, count)


def _mean(plan: PredictionPlan, last: PredictedSet, total: np.ndarray, count: int) -> PredictedMean:
    item = plan.request.items[last.planned.item]
    return PredictedMean(item, last.cell_type, last.batch, count, (total / count).astype(np.float32))
