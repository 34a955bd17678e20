"""The warm-up prediction that must succeed before the service says it is ready."""

import logging

import numpy as np

from steval.errors import CheckpointError
from steval.predictor.controls import ControlPool
from steval.predictor.engine import EncodedControls, Predictor
from steval.predictor.requests import request_names
from steval.wording import counted

log = logging.getLogger(__name__)

FALLBACK_CELLS = 16
TOLERANCE = {"float32": 1e-4, "bf16": 5e-2}
"""Largest difference from the recorded means, relative to the largest of them; what docs/service.md promises."""


def warm_up(predictor: Predictor, pool: "ControlPool | EncodedControls", *, compare: bool) -> None:
    """Predict once; raises `CheckpointError` where the values are not finite, or are not those the checkpoint records.

    `compare` is False where the service starts from other control cells than the checkpoint's own.
    """
    record = predictor.manifest.warmup
    cells = pool.pool if isinstance(pool, EncodedControls) else pool
    if record is not None and compare:
        name, num_cells, seed = record.perturbation, record.num_cells, record.seed
    else:
        name = predictor.known[0] if predictor.known else predictor.manifest.control
        num_cells, seed = FALLBACK_CELLS, 0
    request = request_names([name], num_cells, seed=seed, cell_types=(cells.cell_type_names[0],))
    predicted = np.concatenate([one.cells for one in predictor.predict(request, pool)])
    if not np.isfinite(predicted).all():
        raise CheckpointError(
            f"{predictor.path}: the warm-up prediction of {name!r} is not finite; the weights are damaged or do not suit "
            f"{predictor.dtype} on {predictor.device}"
        )
    if record is None or not compare:
        log.info(
            "warm-up: %s of %s, all finite (there is no recorded prediction to compare with)",
            counted(num_cells, "cell"),
            name,
        )
        return
    expected = np.array(record.mean, dtype=np.float64)
    found = predicted[:, : len(expected)].mean(axis=0, dtype=np.float64)
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
    if difference > TOLERANCE[predictor.dtype]:
        raise CheckpointError(
            f"{predictor.path}: the warm-up prediction of {name!r} differs from the one recorded in the checkpoint by "
            f"{difference:.2g} of the largest value (allowed {TOLERANCE[predictor.dtype]:g}). This machine, its libraries or the "
            "options (dtype, attention) do not reproduce the model; predictions would not be those that were validated"
        )
    log.info(
        "warm-up: %s of %s, as the checkpoint records them within %.1e", counted(num_cells, "cell"), name, difference
    )
