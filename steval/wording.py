"""Words for people: counts, sizes, and text from files that cannot command a terminal."""

import re

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with what would command a terminal made visible: names and notes come from files that strangers made.

    Control characters (but line break and tab), and the signs that turn the direction of writing, become escapes such as `\\x1b`.
    """
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, thing: str, things: str | None = None) -> str:
    """`1 perturbation`, `2 perturbations`."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def memory_size(num_bytes: float) -> str:
    """Bytes for a person, never `0.0 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
