"""Predicted chunks put together: the writer of predictions takes them from here in place of the network."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.errors import DataError
from steval.predictor.controls import ControlPool
from steval.predictor.engine import EncodedControls, PredictedBlock, Predictor
from steval.predictor.requests import PredictionRequest
from steval.predictor.sets import PlannedSet


class PredictedChunks(Predictor):
    """A predictor whose cells were computed before, chunk by chunk; a context manager.

    `paths[i]` holds the cells of the request's items `ranges[i]`, in the order of their sets.
    """

    def __init__(
        self,
        predictor: Predictor,
        request: PredictionRequest,
        pool: ControlPool,
        paths: Sequence[Path],
        ranges: Sequence[tuple[int, int]],
    ):
        self.__dict__.update(predictor.__dict__)
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(CellFile.open(path)) for path in paths]
        chunk_of_item = np.repeat(np.arange(len(ranges)), [end - start for start, end in ranges])
        self._rows: dict[tuple[int, int], tuple[int, int, int]] = {}
        filled = [0] * len(paths)
        for one in self.plan(request, pool):
            chunk = int(chunk_of_item[one.item])
            self._rows[one.item, one.number] = (chunk, filled[chunk], filled[chunk] + one.num_cells)
            filled[chunk] += one.num_cells
        for path, cells, expected in zip(paths, self._files, filled, strict=True):
            if cells.num_cells != expected:
                raise DataError(f"{path} holds {cells.num_cells} predicted cells, and {expected} were asked for")

    def predict_blocks(
        self, planned: Iterable[PlannedSet], pool: "ControlPool | EncodedControls"
    ) -> Iterator[PredictedBlock]:
        """The cells of `planned` sets, a set at a time."""
        for one in planned:
            chunk, start, end = self._rows[one.item, one.number]
            yield PredictedBlock([one], self._files[chunk].rows(np.arange(start, end)).toarray())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
