"""Predictions as an Arrow stream, set by set: of a request, or of a job onto its disk."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from steval.checkpoints.manifest import Manifest
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.means import predicted_means
from steval.predictor.output import output_names
from steval.predictor.plan import PredictionPlan
from steval.predictor.requests import PredictionRequest
from steval.service.http.encoding import ArrowStream


def answer_facts(digest: str, manifest: Manifest, request: PredictionRequest) -> dict[str, Any]:
    """What every form of an answer says beside its values."""
    numbers = {item.num_cells for item in request.items}
    return {
        "checkpoint": digest,
        "scale": manifest.scale if manifest.output_genes is not None else "embedding",
        "target_sum": manifest.target_sum,
        "seed": request.seed,
        "cells": numbers.pop() if len(numbers) == 1 else None,
    }


def arrow_pieces(plan: PredictionPlan, sets: Iterator[PredictedSet], digest: str, names: np.ndarray) -> Iterator[bytes]:
    """The pieces of the stream: one for each set (or mean profile), then the end marker. `names`: of the control cells."""
    request = plan.request
    genes = output_names(plan.manifest)
    of_cells = request.output == "cells"
    num_rows = request.num_cells if of_cells else len(request.items)
    facts = answer_facts(digest, plan.manifest, request)
    facts |= {"output": request.output, "num_rows": num_rows, "genes": genes}
    stream = ArrowStream(len(genes), facts, with_control_cell=of_cells)
    if of_cells:
        for one in sets:
            labels = {
                "perturbation": [one.perturbation] * len(one.cells),
                "cell_type": [one.cell_type] * len(one.cells),
                "control_cell": names[one.control_indices].tolist(),
            }
            yield stream.batch(labels, one.cells)
    else:
        for profile in predicted_means(plan, sets):
            labels = {"perturbation": [profile.item.perturbation], "cell_type": [profile.cell_type]}
            yield stream.batch(labels, profile.mean[None])
    yield stream.end()
