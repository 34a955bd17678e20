"""Printing: tables for people, JSON for machines, both on stdout."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FILE_WIDTH = 160
"""Columns of text when stdout is not a terminal."""


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinities become null."""
    typer.echo(json.dumps(_jsonable(value), indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table as wide as it needs to be; numbers right-aligned with four significant digits."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numeric = [
        any(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in rows)
        for i in range(len(columns))
    ]
    for name, is_number in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        table.add_row(*(escape(format_value(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(f"[bold]{escape(title)}[/bold]")
    console.print(table)


def format_value(value: Any) -> str:
    """Text of one cell: four significant digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if 1e-12 < abs(value) < 1e-3 else f"{value:.4f}"
    return str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
