"""The result directory of a job: whole when its `job.json` is there, which is written last."""

import json
import shutil
from pathlib import Path
from typing import Any

from steval.batch.jobs import DONE_FILE, ERROR_FILE, SCORE_DIR, BatchLayout, Job, read_json
from steval.data.files import atomic_path, remove

FORMAT = 1


def is_whole(layout: BatchLayout, job: Job) -> bool:
    """Whether the results of exactly this job are there, each file with the size it had."""
    directory = layout.directory(job)
    record = read_json(directory / DONE_FILE)
    if record is None or record.get("key") != job.key or record.get("format") != FORMAT:
        return False
    return all(_has_size(directory / name, size) for name, size in record["files"].items())


def finish(layout: BatchLayout, job: Job, seconds: float) -> None:
    """Mark the job's directory as whole and remove its parts."""
    directory = layout.directory(job)
    (directory / ERROR_FILE).unlink(missing_ok=True)
    _sweep(directory)
    files = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != DONE_FILE
    }
    described = job.as_dict()
    described.pop("items")
    record = {
        "format": FORMAT,
        "key": job.key,
        "num_perturbations": len(job.perturbations),
        "num_cells": job.num_cells,
        "worker_seconds": round(seconds, 3),
        "files": files,
        "job": described,
    }
    _write(directory / DONE_FILE, record)
    shutil.rmtree(layout.parts(job), ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what killed writers left half done; the job's owner alone writes here."""
    for partial in directory.glob(".*.part"):
        remove(partial)


def fail(layout: BatchLayout, job: Job, kind: str, message: str, details: str = "") -> None:
    """Leave the error in the job's directory and remove its parts."""
    record = {"format": FORMAT, "key": job.key, "kind": kind, "error": message, "details": details}
    _write(layout.directory(job) / ERROR_FILE, record)
    shutil.rmtree(layout.parts(job), ignore_errors=True)


def error_of(layout: BatchLayout, job: Job) -> str | None:
    """Why the job failed, where it did."""
    record = read_json(layout.directory(job) / ERROR_FILE)
    return None if record is None or record.get("key") != job.key else str(record["error"])


def score_of(layout: BatchLayout, job: Job) -> Path | None:
    """The score directory of a whole job, where it has one."""
    directory = layout.directory(job) / SCORE_DIR
    return directory if directory.is_dir() else None


def one_line(text: str) -> str:
    """A message of several lines, such as one with a list of problems, as one line."""
    first, *rest = [line.strip().removeprefix("- ") for line in text.strip().splitlines() if line.strip()] or [""]
    return f"{first.rstrip(':')}: {'; '.join(rest)}" if rest else first


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(path: Path, record: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
