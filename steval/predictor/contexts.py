"""Several contexts in one request: the control file that each starts from."""

from collections.abc import Sequence
from pathlib import Path

from steval.data.challenge.bundle import prepared_contexts
from steval.errors import ConfigError


def context_files(given: Sequence[str]) -> dict[str, Path]:
    """Control files by context, in order, of `NAME=FILE` and of directories that `steval prepare` made of a control bundle."""
    files: dict[str, Path] = {}
    problems = []
    for text in given:
        name, separator, path = text.partition("=")
        is_directory = Path(text).is_dir()
        if not is_directory and not (separator and name.strip() and path):
            problems.append(f"{text!r}: neither NAME=FILE nor a directory with a prepared control bundle")
            continue
        found = prepared_contexts(Path(text)) if is_directory else {name.strip(): Path(path)}
        problems += [f"context {context} is named twice" for context in found if context in files]
        files.update(found)
    if problems:
        raise ConfigError("--contexts cannot be read", problems)
    return files
