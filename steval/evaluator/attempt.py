"""What is made for comparison (baselines, ceiling, checks, intervals, figures) may cost a note, never the score."""

import logging
from collections.abc import Callable
from typing import TypeVar

from steval.errors import StevalError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def attempt(what: str, make: Callable[[], T], otherwise: T, notes: list[str]) -> T:
    """`make()`; where it fails, `otherwise`, with a sentence in `notes` that says why and a traceback in the debug log.

    `what` begins the sentence: "the ceiling".
    """
    try:
        return make()
    except Exception as error:
        logger.debug("%s could not be made", what, exc_info=True)
        notes.append(f"{what} could not be made and is left out: {reason(error)}")
        return otherwise


def reason(error: Exception) -> str:
    """An error as one line for a reader."""
    text = " ".join(str(error).split())
    return text if isinstance(error, StevalError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
