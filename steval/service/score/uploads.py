"""`POST /score` bodies: uploaded files under names of ours, or paths inside the service's data directories."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from steval.data.outputs import real_path
from steval.errors import DataError, ServiceError
from steval.service.schemas import ScoreBody
from steval.service.score.hdf5_check import require_hdf5

ROLES = ("predictions", "real", "train")
MOST_FIELD_BYTES = 16 * 1024
COPY_BYTES = 2**20


class InvalidBody(Exception):
    """A body that pydantic refused; `findings` are pydantic's errors."""

    def __init__(self, findings: list[dict[str, Any]]):
        self.findings = findings
        super().__init__("the request is not valid")


async def read_submission(
    request: Request, inputs: Path, data_dirs: Sequence[Path]
) -> tuple[ScoreBody, dict[str, str]]:
    """The body and the path of each file by its role; uploads are written to `inputs`.

    Raises `InvalidBody`, `DataError` or `ServiceError`.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _from_form(request, inputs)
    body = _validated(await request.body())
    given = {role: value for role in ROLES if (value := getattr(body, role)) is not None}
    if "predictions" not in given:
        raise ServiceError(
            "name the predictions: a path inside the service's data directories, or upload the file as multipart/form-data",
            status=422,
            code="breaks_a_rule",
        )
    return body, {role: str(resolve_path(text, data_dirs, role)) for role, text in given.items()}


def resolve_path(text: str, data_dirs: Sequence[Path], role: str) -> Path:
    """The file that a client names, which must be an h5ad inside one of `data_dirs` with all links followed.

    What is elsewhere and what is not there get the same `ServiceError` 422, so that nobody can feel their way through the server.
    """
    refused = ServiceError(
        f"{role}: there is no h5ad file {text[:200]!r} in the service's data directories"
        + ("" if data_dirs else " (it has none; whoever runs it names them with --data-dir)"),
        status=422,
        code="no_such_data",
    )
    # what lies outside is told by the letters of the path alone: nothing outside is ever looked at
    inside = os.path.normpath(text)
    if "\0" in text or not text.endswith(".h5ad") or Path(inside).parts[:1] == (os.pardir,):
        raise refused
    for directory in data_dirs:
        root = real_path(directory)
        named = root / inside
        try:
            if not (named.is_relative_to(root) or named.is_relative_to(directory.absolute())):
                continue
            candidate = named.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            continue
        if candidate.is_relative_to(root) and candidate.is_file():
            return candidate
    raise refused


async def _from_form(request: Request, inputs: Path) -> tuple[ScoreBody, dict[str, str]]:
    async with request.form(max_files=len(ROLES), max_fields=16, max_part_size=MOST_FIELD_BYTES) as form:
        uploads = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        problems = [
            f"{name}: not a file that is taken; files are {', '.join(ROLES)}" for name in uploads if name not in ROLES
        ]
        problems += [f"{name}: upload the file itself, or send JSON with paths" for name in fields if name in ROLES]
        if "predictions" not in uploads and not problems:
            problems.append("predictions: the file with the predicted cells is missing")
        if problems:
            raise DataError("the upload is not complete", problems)
        try:
            body = ScoreBody.model_validate(fields)
        except ValidationError as error:
            raise InvalidBody(
                [dict(item) for item in error.errors(include_input=False, include_context=False)]
            ) from error
        files = {}
        for role, upload in uploads.items():
            path = inputs / f"{role}.h5ad"
            await run_in_threadpool(_store, upload, path, role)
            files[role] = str(path)
    return body, files


def _store(upload: UploadFile, path: Path, role: str) -> None:
    with path.open("wb") as handle:
        shutil.copyfileobj(upload.file, handle, COPY_BYTES)
    require_hdf5(path, role)


def _validated(content: bytes) -> ScoreBody:
    try:
        return ScoreBody.model_validate_json(content)
    except ValidationError as error:
        raise InvalidBody([dict(item) for item in error.errors(include_input=False, include_context=False)]) from error
