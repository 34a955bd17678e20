"""Words for people and from them: counts, sizes, numbers, and text from files that cannot command a terminal."""

import re
from collections.abc import Iterable

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LONGEST_NAME = 100
"""Characters of a name that a message shows."""
_DIGITS = re.compile("[0-9]{1,18}")


def printable(text: str) -> str:
    """`text` with what would command a terminal made visible: names and notes come from files that strangers made.

    Control characters (but line break and tab), and the signs that turn the direction of writing, become escapes such as `\\x1b`.
    """
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def whole_number(text: str) -> int | None:
    """The number that plain digits say, up to 18 of them; None for any other text (`int` has its own ways)."""
    return int(text) if _DIGITS.fullmatch(text) else None


def listed(names: Iterable[object], most: int = 10) -> str:
    """The first `most` names for a message, and how many there are in all; quoted where a space or a comma would be misread."""
    texts = [str(name) for name in names]
    shown = ", ".join(_readable(text) for text in texts[:most]) or "(none)"
    return shown + (f", … ({len(texts)} in all)" if len(texts) > most else "")


def _readable(name: str) -> str:
    name = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "…"
    return repr(name) if name != " ".join(name.split()) or not name or "," in name else name


def counted(number: int, thing: str, things: str | None = None) -> str:
    """`1 perturbation`, `12,000 perturbations`; `things` where it is more than an `s`: `1 job waits`, `2 jobs wait`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def memory_size(num_bytes: float) -> str:
    """Bytes for a person, never `0.0 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def needs_package(what: str, package: str) -> str:
    """The sentence where a package that steval itself brings is not installed, as in the image that only serves."""
    return (
        f"{what} needs {package}, which is not installed here (the image `serve` is without it, `full` has it); "
        f"in the clone that steval was installed from: pip install -c constraints.txt {package}"
    )


def duration(seconds: float) -> str:
    """Rounded, in two units: `1 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def needs_extra(what: str, package: str, extra: str) -> str:
    """The sentence where a package of one of steval's extras is not installed; steval comes from a clone, no index has it."""
    return (
        f"{what} needs {package}, which is not installed; in the clone that steval was installed from: "
        f"pip install -c constraints.txt '.[{extra}]'"
    )
