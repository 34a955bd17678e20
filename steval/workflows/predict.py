"""Predicting "as in this file": the perturbations, cell numbers and control cells of given real data."""

import logging
from pathlib import Path

from steval.checkpoints.adapters.given import load_given
from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions, Columns
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.output import WrittenPredictions
from steval.predictor.request_files import items_of
from steval.predictor.requests import PredictionRequest, require_known
from steval.wording import counted

logger = logging.getLogger(__name__)


def predict_as_in(
    checkpoint_path: Path,
    real: CellFile,
    columns: Columns,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    adapter: Path | None = None,
) -> WrittenPredictions:
    """Predict every perturbation of `real` with as many cells of each cell type as there, from its control cells.

    Writes `out` atomically. Raises `UnknownPerturbationError` for perturbations that the checkpoint has no features for.
    """
    checkpoint = load_given(checkpoint_path, adapter)
    items = tuple(items_of(real, columns))
    require_known([item.perturbation for item in items], checkpoint.manifest.perturbation_names, columns.control)
    predictor = Predictor(checkpoint, device=device)
    options = ColumnOptions.parse(columns.as_dict())
    pool = cell_controls(real, checkpoint.manifest, columns=options)
    written = predict_into(out, predictor, PredictionRequest(items=items, seed=seed), pool)
    perturbations = counted(written.num_perturbations, "perturbation")
    logger.info("predicted %s of %s -> %s", counted(written.num_cells, "cell"), perturbations, out)
    return written
