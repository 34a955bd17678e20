"""Error answers: one JSON shape for our own errors and for those of the frameworks below us.

    {"error": {"code": "unknown_perturbation", "message": "...", "problems": ["..."], "request_id": "..."}}

`problems` holds single findings; an unknown perturbation adds `nearest`, a mapping of name → nearest known names.
"""

import errno
import json
import logging
import re
from typing import Any

from starlette.responses import JSONResponse

from steval.errors import OutputError, ServiceError, StevalError, UnknownPerturbationError

log = logging.getLogger(__name__)

CODE_HEADER = "x-error-code"
"""On every error answer of ours; what lacks it comes from below and is put into shape."""

_CODES = {
    400: "bad_request",
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "breaks_a_rule",
    429: "too_many_requests",
    503: "unavailable",
    504: "timeout",
}
_MALFORMED = ("json_", "missing", "extra_forbidden", "finite_number", "int_parsing", "int_from_float", "invalid_key")
"""pydantic error types that mean a malformed request (400); so do all `*_type`. Others break a rule (422)."""


_FIELDS = {
    "choose with --cell-type NAME or all": "name one as cell_type",
    "name it with --cell-type-col": "name it as cell_type_column",
    "; --only-common scores the": "; in common are the",
    "--cell-type-col": "cell_type_column",
    "--cell-type": "cell_type",
    "--pert-col": "perturbation_column",
    "--control": "control",
    "--batch-col": "(not an option of this service)",
    "--batch": "batch",
    "--scale": "scale",
    "--seed": "seed",
    "--real REAL.h5ad": "real",
    "--train FILE.h5ad": "train",
    "--real": "real",
    "--train": "train",
    "--profile": "profile",
}
"""What messages of the other rooms call by the command line's names."""
_OPTION = re.compile("|".join(rf"{re.escape(option)}(?![\w-])" for option in _FIELDS))


def error_answer(error: StevalError, status: int | None = None) -> JSONResponse:
    """The answer to one of our errors; `status` overrides the error's own status and code."""
    text = over_http(str(error))
    details: dict[str, Any] = {"problems": [over_http(one) for one in error.problems]} if error.problems else {}
    if isinstance(error, UnknownPerturbationError):
        details["nearest"] = error.nearest
    headers = {}
    if isinstance(error, ServiceError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    message = text.split("\n")[0] if error.problems else text
    code = error.code if status is None else _CODES[status]
    return shaped(status or error.http_status, code, message, details, headers)


def over_http(text: str) -> str:
    """A message of ours in the words of a request: options of the command line become the fields that stand for them."""
    return _OPTION.sub(lambda match: _FIELDS[match[0]], text)


def code_of(status: int) -> str:
    """The code of an answer with `status` that says no more than that."""
    return _CODES.get(status, "error")


def disk_answer(error: OSError | OutputError) -> ServiceError:
    """What a client may know of a disk that takes no more: a sentence, and none of the service's paths."""
    log.error("a file could not be written: %s", error)
    cause = error.__cause__ if isinstance(error, OutputError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ServiceError(
            "the service's disk has no room for this request, and nothing was kept; come back later, or tell whoever runs it",
            status=507,
            code="insufficient_storage",
        )
    return ServiceError(
        "the service cannot write the files of this request, and nothing was kept; whoever runs it finds the reason in its log",
        status=503,
        code="cannot_write",
    )


def shaped(
    status: int, code: str, message: str, details: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error answer from its parts."""
    body = {"error": {"code": code, "message": message, **(details or {})}}
    return JSONResponse(body, status_code=status, headers={CODE_HEADER: code, **(headers or {})})


def reshape(status: int, body: bytes) -> JSONResponse:
    """Our shape of an error answer that a framework below us made."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("detail"), list) and status == 400:
        return validation_answer(value["detail"])
    code = code_of(status)
    if status == 500:
        return shaped(
            500, "internal_error", "the service failed on this request; its log has the details under request_id"
        )
    message = value.get("error") if isinstance(value, dict) else body.decode("utf-8", "replace")
    return shaped(status, code, str(message or code).strip() or code)


def validation_answer(findings: list[dict[str, Any]]) -> JSONResponse:
    """400 where the body is malformed (not JSON, wrong types, missing or unknown keys), 422 where a value breaks a rule."""
    malformed = any(
        kind.startswith(_MALFORMED) or kind.endswith("_type")
        for kind in (str(item.get("type", "")) for item in findings)
    )
    problems = [
        ": ".join(part for part in (".".join(map(str, item.get("loc", ()))), str(item.get("msg", ""))) if part)
        for item in findings[:20]
    ]
    status = 400 if malformed else 422
    return shaped(status, _CODES[status], "the request is not valid", {"problems": problems})
