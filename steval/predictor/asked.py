"""What is asked for, in the words of `steval predict`'s options, and the request that it makes; without torch.

The same for a checkpoint here and for a service (`steval predict --url`), so that both get the same request.
"""

from pathlib import Path

from pydantic import Field, model_validator

from steval.data.columns import ColumnOptions
from steval.data.effects.decoding import DecodingChoice
from steval.predictor.request_files import read_request
from steval.predictor.requests import (
    ALL_CELL_TYPES,
    DEFAULT_CELLS,
    LARGEST_SEED,
    NumCells,
    Output,
    PredictionRequest,
    PredictionVocabulary,
    request_names,
    require_known,
    split_names,
)
from steval.settings import Settings


class AskedPredictions(Settings):
    """Which predictions are asked for, whoever makes them; field names are the options of `steval predict`."""

    perturbations: tuple[str, ...] = ()
    """Names; each entry may be a comma-separated list."""
    request: Path | None = None
    """A CSV or TSV table, or an h5ad: predict as in this file."""
    all: bool = False
    """Every perturbation that the checkpoint knows; so also where nothing is asked for."""
    cells: NumCells = DEFAULT_CELLS
    """Cells of each perturbation, where the request has no numbers."""
    min_cells: NumCells | None = None
    max_cells: NumCells | None = None
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    output: Output = "cells"
    decoding: DecodingChoice = "checkpoint"
    """How predictions become cells: as the checkpoint says, as the network puts them out, or carried by control cells."""
    cell_types: tuple[str, ...] = ()
    """Predict in each of these; `all`: in each that the controls have; empty: in the only one."""
    batch: str | None = None
    """Start from controls of this batch alone."""
    by_batch: bool = False
    """With an h5ad request: each batch's cells start from controls of that batch."""
    columns: ColumnOptions = ColumnOptions()

    @model_validator(mode="after")
    def _one_request(self) -> "AskedPredictions":
        given = [name for name in ("perturbations", "request", "all") if getattr(self, name)]
        problems = []
        if len(given) > 1:
            problems.append(f"say what to predict in one way, got {' and '.join('--' + name for name in given)}")
        if self.by_batch and (self.request is None or self.request.suffix != ".h5ad"):
            problems.append(
                "--by-batch divides the cells of an h5ad --request by its batches; there is no such request"
            )
        if self.by_batch and self.batch is not None:
            problems.append("--by-batch and --batch contradict each other")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def build_request(asked: AskedPredictions, vocabulary: PredictionVocabulary) -> PredictionRequest:
    """The request that is asked for, checked against the vocabulary."""
    control = vocabulary.control
    known = [name for name in vocabulary.names if name != control]
    if asked.request is not None:
        request = read_request(
            asked.request,
            known=vocabulary.names,
            control=control,
            num_cells=asked.cells,
            seed=asked.seed,
            cell_types=asked.cell_types,
            present_types=vocabulary.cell_types,
            batch=asked.batch,
            output=asked.output,
            columns=asked.columns,
            recorded=vocabulary.columns,
            by_batch=asked.by_batch,
        )
    else:
        names = [name for text in asked.perturbations for name in split_names(text, known)]
        names = known if asked.all or not asked.perturbations else names
        require_known(names, vocabulary.names, control)
        cell_types = vocabulary.cell_types if asked.cell_types == (ALL_CELL_TYPES,) else asked.cell_types
        request = request_names(
            names,
            asked.cells,
            seed=asked.seed,
            cell_types=cell_types or (None,),
            batch=asked.batch,
            output=asked.output,
        )
    request = request.model_copy(update={"decoding": asked.decoding})
    return request.with_limits(asked.min_cells, asked.max_cells)
