"""What client and service agree on: the forms of answers, which of them a request accepts, and how long lists are.

Imports nothing but the errors: the client is installed without what the service needs.
"""

from typing import Literal

from steval.errors import ServiceError

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
H5AD = "application/x-hdf5"
MULTIPART = "multipart/form-data"
Format = Literal["json", "arrow", "h5ad"]
MEDIA_TYPES: dict[str, Format] = {JSON: "json", ARROW: "arrow", H5AD: "h5ad"}
ARROW_KEY = b"steval"
END_KEY = b"end"
"""Of Arrow streams: the key of the schema's metadata, and that of the end marker."""
LONGEST_NAME = 512
"""Characters of a name in a request, or of an adapter in the settings."""
SHOWN_NAMES, MOST_LISTED, MOST_OFFSET = 50, 1000, 2**31
"""Of `GET /perturbations`: names without `limit`, the most that it takes, and the most that `offset` takes."""


def choose_format(accept: str, output: str) -> Format:
    """The format that `Accept` prefers; JSON for means and h5ad for cells where all are as good.

    Cells as JSON, or nothing that we make, is a `ServiceError` 406.
    """
    wanted = _preferences(accept or "*/*")
    default: Format = "json" if output == "mean" else "h5ad"
    order: list[Format] = [default, *(name for name in MEDIA_TYPES.values() if name != default)]
    allowed = [name for name in order if not (name == "json" and output == "cells")]
    best = max(allowed, key=lambda name: _quality(wanted, name))
    if _quality(wanted, best) <= 0:
        offered = ", ".join(media for media, name in MEDIA_TYPES.items() if name in allowed)
        reason = (
            "single cells are too large for JSON" if output == "cells" else "the answer cannot be made in that form"
        )
        raise ServiceError(
            f"{reason}: Accept is {accept[:200]!r}; for output {output!r} it may name {offered}",
            status=406,
            code="not_acceptable",
        )
    return best


def _preferences(accept: str) -> dict[str, float]:
    wanted: dict[str, float] = {}
    for part in accept.split(",")[:32]:
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.lower().startswith("q="):
                try:
                    quality = min(1.0, max(0.0, float(parameter[2:])))
                except ValueError:
                    quality = 0.0
        wanted[media.lower()] = quality
    return wanted


def _quality(wanted: dict[str, float], name: Format) -> float:
    media = next(media for media, known in MEDIA_TYPES.items() if known == name)
    return wanted.get(media, wanted.get(media.split("/")[0] + "/*", wanted.get("*/*", 0.0)))


def wants_zstd(accept_encoding: str) -> bool:
    """Whether `Accept-Encoding` names zstd with a quality above zero."""
    return _preferences(accept_encoding).get("zstd", 0.0) > 0
