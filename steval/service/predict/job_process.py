"""The process of one prediction in the background: `python -m steval.service.predict.job_process JOB_DIRECTORY`.

Ends with exit code 0 and `tmp/score`, or with 1 and `tmp/error.json`. It opens the checkpoint and the operator's control cells, no
file of a client's.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steval.data.files import atomic_path
from steval.errors import StevalError
from steval.predictor.cells.predicted import PredictedBlock
from steval.service.jobs.files import PROGRESS, SCORE, TEMPORARY
from steval.service.jobs.process import begin, end_with_worker, write_error

NAMES = {"h5ad": "predictions.h5ad", "arrow": "predictions.arrow"}
"""The result's file by its form."""
SECONDS = 1.0
"""Between two words on the progress."""


def main(arguments: list[str]) -> int:
    """Run the job of `arguments[0]`."""
    directory = Path(arguments[0])
    request = begin(directory)
    _limit_files(request["max_bytes"])
    end_with_worker()
    try:
        _predict(directory, request)
    except (StevalError, MemoryError) as error:
        write_error(directory, error, request, "the prediction")
        return 1
    return 0


def _predict(directory: Path, request: dict[str, Any]) -> None:
    import torch

    from steval.checkpoints.adapters.given import load_given
    from steval.predictor.controls import checkpoint_controls, file_controls
    from steval.predictor.engine import Predictor
    from steval.predictor.output import OutputOptions, takes_sparse_cells, write_predictions
    from steval.service.predict.arrow import arrow_pieces
    from steval.service.schemas import PredictionsBody

    torch.set_num_threads(request["threads"])
    body = PredictionsBody.parse(request["body"], source="the request")
    checkpoint = load_given(request["checkpoint"], request.get("adapter"))
    controls = request["controls"]
    predictor = Predictor(
        checkpoint, device=request["device"], dtype=request["dtype"], batch_cells=request["batch_cells"]
    )
    pool = checkpoint_controls(checkpoint) if controls is None else file_controls(Path(controls), checkpoint.manifest)
    plan = predictor.plan(body.to_request(), pool)
    (directory / TEMPORARY / SCORE).mkdir()
    path = directory / TEMPORARY / SCORE / NAMES[body.form]
    if body.form == "h5ad":
        sparse = takes_sparse_cells(plan, OutputOptions())
        blocks = _counted(predictor.blocks(plan, sparse=sparse), directory)
        write_predictions(path, plan, blocks, predictor.facts_of(plan, "steval serve"))
    else:
        sets = (one for block in _counted(predictor.blocks(plan), directory) for one in block.split())
        with atomic_path(path) as partial, partial.open("wb") as handle:
            for piece in arrow_pieces(plan, sets, predictor.digest, pool.names):
                handle.write(piece)


def _counted(blocks: Iterator[PredictedBlock], directory: Path) -> Iterator[PredictedBlock]:
    """The blocks; how many cells there were is written down now and then."""
    num_cells, last = 0, time.monotonic()
    for block in blocks:
        yield block
        num_cells += sum(one.num_cells for one in block.sets)
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            with atomic_path(directory / TEMPORARY / PROGRESS) as partial:
                partial.write_text(json.dumps({"cells": num_cells}), encoding="utf-8")


def _limit_files(num_bytes: int) -> None:
    """No file of this process becomes larger; what goes beyond is an error of the write, as where the disk is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
