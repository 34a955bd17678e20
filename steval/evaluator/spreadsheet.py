"""CSV tables that are safe to open in a spreadsheet program, and read back as they were.

A spreadsheet takes a cell that begins with one of = + - @, a tab or a line break for a formula, also where it is the name of a
perturbation. Such a text, and one that begins with an apostrophe, is written with an apostrophe before it; a reader takes
one away. Columns of numbers stay as they are.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

_RISKY = r"['=+\-@\t\r\n]"


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write `frame` with its texts guarded."""
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    frame.with_columns(pl.col(name).str.replace(f"^({_RISKY})", "'$1") for name in texts).write_csv(path)


def unguarded(text: str) -> str:
    """A text as it was before `write_csv` guarded it."""
    return re.sub(f"^'({_RISKY})", r"\1", text)


def read_csv(path: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    """What `write_csv` wrote."""
    frame = pl.read_csv(Path(path).read_bytes(), schema=dict(schema))  # Polars would take a name for a pattern
    return frame.with_columns(pl.col(pl.String).str.replace(f"^'({_RISKY})", "$1"))
