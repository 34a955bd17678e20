"""The process of one scoring job: `python -m steval.service.score.job_process JOB_DIRECTORY`.

Ends with exit code 0 and `tmp/score`, or with 1 and `tmp/error.json`; with anything else only where it crashed.
Nothing that starts a thread is imported before the process is confined: a thread keeps the rights that it was born with.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from steval.errors import StevalError
from steval.service.jobs.files import INPUTS, KERNELS, SCORE, TEMPORARY
from steval.service.jobs.process import begin, end_with_worker, write_error
from steval.service.score.confinement import Limits, confine, end_with_parent


def main(arguments: list[str]) -> int:
    """Run the job of `arguments[0]`."""
    directory = Path(arguments[0])
    request = begin(directory)
    end_with_parent()
    own = directory / TEMPORARY
    _own_caches(own)
    for sentence in confine(own, directory / INPUTS, _readable(request), Limits(**request["limits"])):
        sys.stderr.write(sentence + "\n")
    end_with_worker()
    try:
        _score(directory, request)
    except (StevalError, MemoryError) as error:
        write_error(directory, error, request, "scoring")
        return 1
    return 0


def _score(directory: Path, request: dict[str, Any]) -> None:
    from steval.data.columns import ColumnOptions
    from steval.evaluator.settings import ScoreChoice, ScoreSettings
    from steval.service.score.hdf5_check import require_harmless
    from steval.workflows.score import ScoreRequest, score_predictions

    files = {role: Path(path) for role, path in request["files"].items()}
    for role, path in files.items():
        require_harmless(path, role, request["max_values"])
    body = request["body"]
    columns = ColumnOptions(
        perturbation=body["perturbation_column"],
        control=body["control"],
        cell_type=body["cell_type_column"],
        drop_unlabelled=body["drop_unlabelled"],
    )
    score_predictions(
        ScoreRequest(
            preds=files["predictions"],
            checkpoint=Path(request["checkpoint"]) if request["checkpoint"] else None,
            adapter=Path(request["adapter"]) if request.get("adapter") else None,
            real=files.get("real"),
            train=files.get("train"),
            out=directory / TEMPORARY / SCORE,
            columns=columns,
            scale=body["scale"],
            data_dirs=tuple(Path(path) for path in request["data_dirs"]),
            settings=ScoreSettings(**{name: body[name] for name in ScoreChoice.model_fields}),
            threads=request["threads"],
        )
    )


def _own_caches(own: Path) -> None:
    """Let libraries keep what they cache in the job's own place; matplotlib's list of fonts, which takes seconds, is copied."""
    own.mkdir(exist_ok=True)
    known = os.environ.get("MPLCONFIGDIR") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "matplotlib"
    )
    for fonts in Path(known).glob("fontlist-*.json"):
        shutil.copy(fonts, own)
    variables = ("TMPDIR", "HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "STEVAL_CACHE_DIR")
    os.environ.update(dict.fromkeys(variables, str(own)), NUMBA_CACHE_DIR=str(own / KERNELS))


def _readable(request: dict[str, Any]) -> list[Path]:
    """What the job was given beside its own directory."""
    given = [*request["data_dirs"], *request["recorded"], *request["files"].values()]
    return [Path(path) for path in (*given, request["checkpoint"], request.get("adapter")) if path]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
