"""Where output may go: never over an input, through links, onto plain files, under a name of its format."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from steval.errors import ConfigError, OutputError


def destination(path: Path) -> Path:
    """Where writing to `path` ends: the file itself, or the one that a link leads to, whether it exists yet or not.

    What is no plain file (a directory, a pipe, a device, a socket, a link that leads to itself) is an `OutputError`.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if mode is not None and not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no plain file")
        raise OutputError(f"cannot write {path}: it is {kind}")
    return real_path(path) if path.is_symlink() else path


_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe, not a file"), (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"), (stat.S_ISBLK, "a device, not a file"),
)  # fmt: skip


def require_output(out: Path, inputs: Mapping[str, Path | None], *, suffixes: Sequence[str] = ()) -> None:
    """Refuse an output before anything is computed for it.

    One that is among the `inputs` (what it is → path), under any name, or whose suffix promises another format than `suffixes`,
    is a `ConfigError`; one that cannot be written (see `destination`) an `OutputError`.
    """
    out = Path(out)
    if suffixes and out.suffix not in suffixes:
        raise ConfigError(
            f"{out}: what is written is {' or '.join(suffixes)}, not {out.suffix or 'a name without a suffix'}"
        )
    for what, path in inputs.items():
        if path is not None and same_file(out, path):
            raise ConfigError(f"{out} is {what}, and the output would take its place: name another file with --out")
    destination(out)


def require_output_directory(directory: Path, inputs: Mapping[str, Path | None]) -> Path:
    """The directory that takes the place of `directory` as a whole, links followed; one that holds an input is a `ConfigError`."""
    target = real_path(directory)
    for what, path in inputs.items():
        if path is not None and real_path(path).is_relative_to(target):
            raise ConfigError(
                f"{path} ({what}) lies in {directory}, which the output would replace: name another directory"
            )
    return target


def real_path(path: Path | str) -> Path:
    """The absolute path without links; one that leads to itself stays as it is (`Path.resolve` fails on it)."""
    return Path(os.path.realpath(path))


def same_file(one: Path, other: Path) -> bool:
    """Whether two names mean one file: by links of either kind, or by path where it does not exist yet."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
