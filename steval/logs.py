"""Logging and progress: configured at the edges, used everywhere through `logging.getLogger(__name__)`."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from steval.wording import printable

T = TypeVar("T")


def configure(level: int = logging.INFO) -> None:
    """Send steval's log lines to stderr; called by the command line and the service only."""
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("steval")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _CurrentStderr(logging.Handler):
    """Writes to whatever stderr is at the time, also after it was replaced, and never across a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record)), file=sys.stderr)


def progress_bar(total: int | None, description: str, unit: str) -> tqdm:
    """A bar on stderr, silent when stderr is not a terminal; the caller updates and closes it (`with` works)."""
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=None, dynamic_ncols=True)


def progress(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a bar as in `progress_bar`."""
    yield from tqdm(items, desc=description, unit=unit, total=total, file=sys.stderr, disable=None, dynamic_ncols=True)
