"""The command lines of README and docs: collected from every code block and from code inside sentences, each with its place.

A block marked `sh` is run by a test, as it stands; `test_docs.py` says by which. A command in any other block (`bash`,
indented) is one that no test can run, and stands with its reason in `test_docs.py`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    sorted(
        [
            *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "client/README.md")),
            *ROOT.glob("docs/**/*.md"),
        ]
    )
)
RUN = "sh"
"""The language of blocks that a test runs."""
SHELLS = frozenset({RUN, "bash", "console", "shell"})
PROGRAMS = frozenset(
    {
        *("steval", "python", "pip", "bash", "curl", "docker", "kubectl", "torchrun", "srun", "sbatch"),
        *("bentoml", "mkdocs", "mike", "pytest", "schemathesis"),
    }
)
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}|\t)\S.*\n?)+", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")


@dataclass(frozen=True)
class Documented:
    """A command line of a page."""

    page: str
    """From the root of the repository."""
    line: str
    """Continued lines joined, comment removed, white space single."""
    language: str
    """Of its block; empty for a block without one and for indented ones, `inline` inside a sentence."""

    @property
    def words(self) -> list[str]:
        return split(self.line)


def split(line: str) -> list[str]:
    """As a shell does; by white space where quotes do not close."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def blocks(page: Path, language: str = RUN) -> list[str]:
    """The code blocks of one language, in the order of the page."""
    return [text for _, named, text in _FENCE.findall(page.read_text(encoding="utf-8")) if named == language]


def commands_to_run(page: Path) -> list[list[str]]:
    """What the `sh` blocks of a page hold, in order, split as a shell does."""
    return [split(line) for block in blocks(page) for line in _lines(block)]


def documented(page: Path) -> list[Documented]:
    """Every command line of a page."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    found = [(language, line) for _, language, block in _FENCE.findall(text) for line in _lines(block)]
    rest = _FENCE.sub("", text)
    found += [("", line) for block in _INDENTED.findall(rest) for line in _lines(block)]
    found += [("inline", " ".join(code.split())) for code in _INLINE.findall(_INDENTED.sub("", rest))]
    return [
        Documented(name, line, language) for language, line in found if language in SHELLS or _program(line) in PROGRAMS
    ]


def _lines(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s+)#\s.*$", "", line).strip().removeprefix("$ ")
        if bare:
            yield " ".join(bare.split())


def _program(line: str) -> str:
    """The first word that sets no variable, of two or more."""
    words = [word for word in line.split() if not _VARIABLE.fullmatch(word)]
    return words[0] if len(words) > 1 else ""
