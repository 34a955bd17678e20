"""How results show themselves in a notebook: a few facts as text and as HTML."""

from collections.abc import Sequence
from html import escape
from typing import Any

from steval.wording import printable

Facts = Sequence[tuple[str, Any]]


def as_text(title: str, facts: Facts) -> str:
    """One line for the title, one for each fact that has a value."""
    return "\n".join([title, *(f"  {name}: {printable(str(value))}" for name, value in facts if value is not None)])


def as_html(title: str, facts: Facts, more: str = "") -> str:
    """The same as a small table; `more` is HTML."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(printable(str(value)))}</td></tr>'
        for name, value in facts
        if value is not None
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table>{more}</div>"


def listed(names: Sequence[str], most: int = 8) -> str:
    """`5: A, B, C, …`."""
    return f"{len(names):,}: {', '.join(names[:most])}" + (", …" if len(names) > most else "")
