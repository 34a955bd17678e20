"""Mean profiles: one row for each item of a request, summed up while its sets are predicted."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steval.predictor.controls import ControlPool
from steval.predictor.engine import EncodedControls, PredictedSet, Predictor
from steval.predictor.requests import PredictionRequest, RequestItem

CONTROL_ROWS = 256


@dataclass(frozen=True)
class MeanProfile:
    """Mean of an item's predicted cells, float32 `[G]` on the checkpoint's scale."""

    item: RequestItem
    cell_type: str
    batch: str | None
    num_cells: int
    mean: np.ndarray


def mean_profiles(
    predictor: Predictor, request: PredictionRequest, pool: ControlPool | EncodedControls
) -> Iterator[MeanProfile]:
    """A profile for each item, in request order; only one item's sum is in memory."""
    yield from _profiles(request, predictor.predict(request, pool))


def _profiles(request: PredictionRequest, predicted: Iterator[PredictedSet]) -> Iterator[MeanProfile]:
    held: PredictedSet | None = None
    total, count = np.zeros(0), 0
    for one in predicted:
        if held is not None and one.planned.item != held.planned.item:
            yield _profile(request, held, total, count)
            held = None
        if held is None:
            total, count = np.zeros(one.cells.shape[1]), 0
        held = one
        total += one.cells.sum(axis=0, dtype=np.float64)
        count += len(one.cells)
    if held is not None:
        yield _profile(request, held, total, count)


def _profile(request: PredictionRequest, last: PredictedSet, total: np.ndarray, count: int) -> MeanProfile:
    item = request.items[last.planned.item]
    return MeanProfile(item, last.cell_type, last.batch, count, (total / count).astype(np.float32))


def control_mean(pool: ControlPool, rows: np.ndarray) -> np.ndarray:
    """Mean measured expression of the pool's `rows`, float32 `[G]`."""
    total: np.ndarray | None = None
    for start in range(0, len(rows), CONTROL_ROWS):
        part = np.asarray(pool.measured(rows[start : start + CONTROL_ROWS]).sum(axis=0, dtype=np.float64)).ravel()
        total = part if total is None else total + part
    assert total is not None
    return (total / len(rows)).astype(np.float32)
