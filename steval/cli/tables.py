"""Layout of tables for a terminal of any width: no number and no key is ever cut.

A table that is too wide first wraps its texts and headings, then becomes several below one another that repeat the key columns,
and at last one record a row. Empty columns are left out, and the ends of an interval share a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

GAP = 2
"""Blanks between columns."""
NARROWEST_TEXT = 40
"""Texts may be broken inside a word from here on; a longer name or path is folded where it must be, never cut."""
NARROWEST_VALUE = 24
"""Of a value beside its name."""
INTERVAL = ("_low", "_high")
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A heading and the texts below it."""

    name: str
    texts: tuple[str, ...]
    is_number: bool
    is_key: bool = False
    """Never folded: rows are told apart by it."""

    @property
    def natural(self) -> int:
        """Width without any line break."""
        return max(map(cell_len, (self.name, *self.texts)))

    @property
    def smallest(self) -> int:
        """Width below which a number, a key or a heading's word would be broken."""
        heading = max(map(cell_len, _pieces(self.name)))
        if self.is_number:
            return max(heading, *map(cell_len, self.texts), 1)
        words = max((cell_len(word) for text in self.texts for word in text.split()), default=1)
        return max(heading, words if self.is_key else min(words, NARROWEST_TEXT))


def with_intervals(names: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Columns `X_low` and `X_high` as one `X interval`."""
    kept, joined = list(names), [list(row) for row in rows]
    for low in [name for name in names if name.endswith(INTERVAL[0])]:
        stem = low.removesuffix(INTERVAL[0])
        high = stem + INTERVAL[1]
        if high not in kept:
            continue
        at, other = kept.index(low), kept.index(high)
        for row in joined:
            ends = (row[at], row[other])
            row[at] = NOTHING if NOTHING in ends else " to ".join(ends)
            del row[other]
        kept[at] = f"{stem} interval"
        del kept[other]
    return kept, joined


def lay_out(columns: Sequence[Column], width: int) -> list[str]:
    """The lines of a table within `width`, heading first; empty where there are no columns."""
    shown = [column for column in columns if any(text not in ("", NOTHING) for text in column.texts)] or list(columns)
    if not shown:
        return []
    if _total([column.smallest for column in shown]) <= width:
        return _block(shown, width)
    keys = [column for column in shown if column.is_key] or [shown[0]]
    others = [column for column in shown if column not in keys]
    if (
        _total([column.smallest for column in (*keys, max(others, key=lambda one: one.smallest))]) > width
        if others
        else True
    ):
        return _records(shown, width)
    lines: list[str] = []
    while others:
        taken = 1
        while taken < len(others) and _total([one.smallest for one in (*keys, *others[: taken + 1])]) <= width:
            taken += 1
        lines += [*([""] if lines else []), *_block([*keys, *others[:taken]], width)]
        others = others[taken:]
    return lines


def facts(pairs: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Lines of names and values: values beside their names, or below where there is no room."""
    longest = max((cell_len(name) for name, _ in pairs), default=0)
    beside = width - longest - GAP
    lines: list[str] = []
    for name, value in pairs:
        if beside < NARROWEST_VALUE:
            lines += [*wrap(name, width), *(f"  {line}" for line in wrap(value, width - 2))]
            continue
        first, *more = wrap(value, beside)
        lines.append(f"{_padded(name, longest)}{' ' * GAP}{first}".rstrip())
        lines += [" " * (longest + GAP) + line for line in more]
    return lines


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width`, broken at blanks; a longer word is folded."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and cell_len(line) + 1 + cell_len(word) <= width:
                line = f"{line} {word}"
                continue
            if line:
                lines.append(line)
            *folded, line = chop_cells(word, max(1, width)) or [""]
            lines += folded
        lines.append(line)
    return lines


def _pieces(heading: str) -> list[str]:
    """Where a heading may be broken: at blanks and behind underscores."""
    return heading.replace("_", "_ ").split() or [""]


def _heading(name: str, width: int) -> list[str]:
    if cell_len(name) <= width:
        return [name]
    lines = [""]
    for piece in _pieces(name):
        joint = "" if not lines[-1] or lines[-1].endswith("_") else " "
        if cell_len(lines[-1] + joint + piece) <= width or not lines[-1]:
            lines[-1] += joint + piece
        else:
            lines.append(piece)
    return lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _block(columns: Sequence[Column], width: int) -> list[str]:
    """One table; what is left of the width goes to the columns that need least."""
    widths = [column.smallest for column in columns]
    left = width - _total(widths)
    for position in sorted(range(len(columns)), key=lambda one: columns[one].natural - widths[one]):
        more = min(left, columns[position].natural - widths[position])
        widths[position] += more
        left -= more
    headings = [_heading(column.name, at) for column, at in zip(columns, widths, strict=True)]
    tallest = max(map(len, headings))
    lines = _row(columns, widths, [[""] * (tallest - len(one)) + one for one in headings])
    lines.append("─" * _total(widths))
    for number in range(len(columns[0].texts)):
        cells = [wrap(column.texts[number], at) for column, at in zip(columns, widths, strict=True)]
        lines += _row(columns, widths, cells)
    return lines


def _row(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = [
            _padded(part, at, right=column.is_number) for part, at, column in zip(parts, widths, columns, strict=True)
        ]
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _padded(text: str, width: int, *, right: bool = False) -> str:
    blanks = " " * max(0, width - cell_len(text))
    return blanks + text if right else text + blanks


def _records(columns: Sequence[Column], width: int) -> list[str]:
    lines: list[str] = []
    for number in range(len(columns[0].texts)):
        pairs = [(column.name, column.texts[number]) for column in columns]
        lines += [*([""] if lines else []), *facts(pairs, width)]
    return lines
