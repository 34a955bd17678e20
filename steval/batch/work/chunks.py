"""Predicted chunks put together: the cells of a plan from the files that predict tasks wrote."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.errors import DataError
from steval.predictor.cells.predicted import PredictedBlock, PredictionFacts
from steval.predictor.plan import PredictionPlan
from steval.wording import counted

Chunks = Sequence[tuple[Path, tuple[int, int]]]
"""Files with the items of the request that each holds, first and last+1; in order, all items once."""


@contextmanager
def chunk_blocks(plan: PredictionPlan, chunks: Chunks) -> "Generator[Iterator[PredictedBlock]]":
    """The plan's cells, a set at a time, from the chunks that hold them in the order of their sets.

    Raises `DataError` for a file with another number of cells than its items have.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(CellFile.open(path)) for path, _ in chunks]
        for cells, (path, (start, end)) in zip(files, chunks, strict=True):
            expected = sum(item.num_cells for item in plan.items[start:end])
            if cells.num_cells != expected:
                raise DataError(
                    f"{path} holds {counted(cells.num_cells, 'predicted cell')}, and {expected} were asked for"
                )
        yield _blocks(plan, files, chunks)


def _blocks(plan: PredictionPlan, files: Sequence[CellFile], chunks: Chunks) -> Iterator[PredictedBlock]:
    ends = [end for _, (_, end) in chunks]
    chunk, row = 0, 0
    for one in plan.sets():
        if one.item >= ends[chunk]:
            chunk, row = chunk + 1, 0
        cells = files[chunk].rows(np.arange(row, row + one.num_cells)).toarray()
        row += one.num_cells
        yield PredictedBlock([one], cells)


def chunk_facts(chunks: Chunks, made_by: str) -> PredictionFacts:
    """Who computed the cells, as the first chunk's record says (which of several GPUs did is left out), and what each expects."""
    records = []
    for path, _ in chunks:
        with CellFile.open(path) as cells:
            records.append(cells.record["details"])
    details = records[0]
    device, _, _ = details["predictor"]["device"].partition(":")
    engine = {**details["predictor"], "device": device}
    expected = [line for one in records for line in one.get("expected_error", ())]
    return PredictionFacts(made_by, details["checkpoint"], details["checkpoint_digest"], engine, expected or None)
