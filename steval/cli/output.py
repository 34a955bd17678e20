"""Printing: tables and facts for people, JSON for machines, both on stdout; whatever stdout is, and whatever names hold."""

import codecs
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import typer

from steval.cli.surroundings import NARROWEST
from steval.errors import OutputError
from steval.wording import printable, whole_number

FILE_WIDTH = 160
"""Columns of text when stdout is not a terminal and COLUMNS is not set."""
LONGEST_LINE = 100
"""Of running text."""
LONGEST_KEY, MOST_KEYS = 6, 2
"""Words of a key, and columns of keys."""
_PLAIN = str.maketrans(
    {
        "–": "-",
        "—": "-",
        "×": "x",
        "…": "...",
        "→": "->",
        "─": "-",
        "│": "|",
        "’": "'",
        "·": "-",
        "−": "-",
        "↑": "(high)",
        "↓": "(low)",
        "“": '"',
        "”": '"',
    }
)


class Tenths(float):
    """A number that tables show with one decimal."""


def say(text: str = "", *, err: bool = False) -> None:
    """Text for a person; control characters of names and files are made visible."""
    _write(printable(text), sys.stderr if err else sys.stdout)


def say_own(text: str) -> None:
    """Text that the program made itself, which may hold what `bold` adds; nothing of files."""
    _write(text, sys.stdout)


def bold(text: str) -> str:
    """`text` as a heading, where a terminal shows it."""
    return typer.style(text, bold=True) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def say_wrapped(text: str) -> None:
    """Running text on stdout, in lines that fit the terminal and are not too long to read."""
    from steval.cli.tables import wrap

    _write("\n".join(wrap(printable(text).strip(), min(terminal_width(), LONGEST_LINE))), sys.stdout)


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinities become null."""
    _write(json.dumps(_jsonable(value), indent=2), sys.stdout)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table that fits the terminal without cutting a number or a key; numbers have four significant digits.

    The first column, and texts right after it, are the keys: they are repeated where the table has to be divided.
    """
    from steval.cli.tables import Column, lay_out, with_intervals

    numeric = dict(zip(columns, ([_is_number(row[i]) for row in rows] for i in range(len(columns))), strict=True))
    texts = [[printable(format_value(value)) for value in row] for row in rows]
    names, joined = with_intervals([printable(name) for name in columns], texts)
    shown = []
    keys = True
    for position, name in enumerate(names):
        found = numeric.get(name, [])
        is_number = bool(found) and all(one is not False for one in found) and any(found)
        words = max((len(row[position].split()) for row in joined), default=1)
        keys = (
            keys and not is_number and words <= LONGEST_KEY and position < MOST_KEYS and not name.endswith(" interval")
        )
        shown.append(Column(name, tuple(row[position] for row in joined), is_number, keys))
    _print_lines(title, lay_out(shown, terminal_width()))


def print_facts(title: str, pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, a line each; what has no value is left out."""
    from steval.cli.tables import facts

    shown = [(printable(name), printable(format_value(value))) for name, value in pairs if value is not None]
    _print_lines(title, facts(shown, terminal_width()))


def terminal_width() -> int:
    """Columns to fill: the terminal's; elsewhere COLUMNS, or those of a wide page."""
    if sys.stdout.isatty():
        return max(NARROWEST, shutil.get_terminal_size().columns)
    return max(NARROWEST, whole_number(os.environ.get("COLUMNS", "")) or FILE_WIDTH)


def format_value(value: Any) -> str:
    """Text of one cell: four significant digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Tenths):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4g}" if 1e-12 < abs(value) < 1e-3 else f"{value:.4f}"
    return str(value)


class ForgivingStream:
    """stdout or stderr of a process: signs that its encoding lacks are written in other letters, and a reader who has left
    (`steval … | head`) ends the writing, not the work. A result that cannot be written is an `OutputError`."""

    def __init__(self, stream: TextIO, name: str):
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """As a stream's."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As a stream's."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """What is still to come goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._name == "stdout" and not isinstance(error, BrokenPipeError):
            raise OutputError(f"cannot write to {self._name}: {error.strerror}") from error


def prepare_streams() -> None:
    """Once, where a process begins to be a command."""
    codecs.register_error("steval.plain", _in_other_letters)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="steval.plain")
            setattr(sys, name, ForgivingStream(stream, name))


def _in_other_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = lacking.translate(_PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _print_lines(title: str, lines: Sequence[str]) -> None:
    say_own("\n".join([bold(printable(title)), *lines, ""]))


def _write(text: str, stream: TextIO) -> None:
    """A line, or several; not by click, which takes a stream of ASCII for one of UTF-8."""
    stream.write(text + "\n")
    stream.flush()


def _is_number(value: Any) -> bool | None:
    """None where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
