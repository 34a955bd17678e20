"""`ETag` and `If-None-Match`: an answer that the client has already is 304 without a body."""

import hashlib

from starlette.datastructures import Headers
from starlette.responses import Response

MOST_TAGS = 64


def has_tag(headers: Headers, tag: str) -> bool:
    """Whether `If-None-Match` names `tag`, weak or strong (RFC 9110, 13.1.2)."""
    given = headers.get("if-none-match", "")
    return any(one.strip().removeprefix("W/") == tag.removeprefix("W/") for one in given.split(",")[:MOST_TAGS])


def not_modified(tag: str, headers: dict[str, str]) -> Response:
    """The answer to a client that has it."""
    return Response(status_code=304, headers={**headers, "ETag": tag})


def tagged(asked: Headers, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """`content` under the tag of its bytes, or 304."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if has_tag(asked, tag):
        return not_modified(tag, headers)
    return Response(content, headers={**headers, "ETag": tag, "Content-Type": media_type})
