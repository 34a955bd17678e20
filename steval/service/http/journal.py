"""Log lines as JSON, one object a line on stderr: time, level, logger, message, and what a record carries beside them."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

ACCESS = "steval.service.http.access"
_FIELDS = (
    *(
        "request_id",
        "trace_id",
        "method",
        "route",
        "status",
        "code",
        "milliseconds",
        "client",
        "key",
        "bytes_in",
        "bytes_out",
    ),
    *("job", "model", "adapter", "cells"),
)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; exceptions are text under `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; line breaks are escaped, so that a client cannot forge a line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {field: value for field in _FIELDS if (value := getattr(record, field, None)) is not None}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class WithoutBadRequests(logging.Filter):
    """Drops the tracebacks that BentoML logs for a client's mistakes; the access line has their status."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a body that did not validate."""
        error = record.exc_info[1] if record.exc_info else None
        return type(error).__name__ not in ("ValidationError", "BadInput", "ClientDisconnect")


def configure(level: int = logging.INFO) -> None:
    """Send the service's, BentoML's and uvicorn's records to stderr as JSON; replaces their handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(WithoutBadRequests())
    for name, least in (
        ("", logging.WARNING),
        ("steval", level),
        ("bentoml", level),
        ("uvicorn.error", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
