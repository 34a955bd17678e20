"""Files written beside their final name and moved into place, and their content digests.

What is being written is called `.NAME.PROCESS.part`. A writer that ends, by an error or by SIGTERM (`steval.signals`), removes
it; what a killed one left is removed by the next writer of the same name, as soon as the process is known to be gone.
"""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from steval.data.outputs import destination
from steval.errors import ConfigError, DataError, OutputError
from steval.machine import machine_name, process_birth, process_is_gone

MAX_TEXT_BYTES = 256 * 2**20
"""Largest text file that is read whole."""
_PART = re.compile(r"\.(?P<pid>\d+)-(?P<birth>\d*)-(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.\w+")
"""What follows the name of the file that a part is to be."""


@contextmanager
def atomic_tensors(path: Path) -> Generator[Path]:
    """As `atomic_path`, for safetensors' writer: its errors are `OutputError`s, and others may read the file as the umask says.

    That writer makes files that their owner alone can read, under a name of its own beside the one it is given, which stay where
    the process is killed: so both lie in a directory that is removed with all that is in it.
    """
    from safetensors import SafetensorError  # here: the client's distribution comes without

    path = destination(path)
    with atomic_path(path) as partial, ScratchDirectory(path.name, path.parent) as directory:
        partial.touch()
        written = directory / "tensors"  # of no name that is looked for where checkpoints are
        try:
            yield written
        except SafetensorError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        written.chmod(partial.stat().st_mode)
        written.replace(partial)


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, otherwise removed.

    A reader sees the old file or the whole new one, never a part (also after a kill: only a `.part` file may remain, until
    the next writer of `path`). A link stays, and the file that it leads to is written.
    """
    path = destination(path)
    require_directory(path.parent)
    partial = partial_beside(path)
    try:
        yield partial
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        reason = (
            os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        )  # HDF5's own text has many lines
        raise OutputError(f"cannot write {path}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def partial_beside(path: Path) -> Path:
    """A name beside `path` for what is to take its place; parts of it that writers left which are gone are removed."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner = _PART.fullmatch(left.name.removeprefix(f".{path.name}"))
        if owner and owner["machine"] == _machine() and process_is_gone(int(owner["pid"]), owner["birth"]):
            _remove_own(left)
    pid = os.getpid()
    return path.with_name(f".{path.name}.{pid}-{process_birth(pid)}-{_machine()}-{secrets.token_hex(4)}.part")


class ScratchDirectory:
    """A new directory for this process alone, below `parent` (by default the system's for temporary files).

    It is removed by `close`, and at the latest when the process ends; what killed processes of this user left under the same
    name is removed before.
    """

    def __init__(self, name: str, parent: Path | None = None):
        self.path = partial_beside(Path(tempfile.gettempdir() if parent is None else parent) / name)
        self.path.mkdir(mode=0o700)
        self._removal = weakref.finalize(self, _remove_by, os.getpid(), self.path)

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._removal()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove_by(pid: int, path: Path) -> None:
    if os.getpid() == pid:  # not in a process that was forked from it
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_own(path: Path) -> None:
    """Remove what this user has left; in a directory for all users others' are theirs, and somebody may be at the same."""
    with contextlib.suppress(OSError):
        if path.lstat().st_uid == os.geteuid():
            remove(path)


@functools.cache
def _machine() -> str:
    return hashlib.sha256(machine_name().encode()).hexdigest()[:8]


def require_directory(directory: Path) -> None:
    """Create `directory` with its parents, or say why it cannot be."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the directory {directory}: {error.strerror or error}") from error


def require_file(path: Path, what: str = "file") -> Path:
    """`path` if it is a file; otherwise a `DataError` that names it."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such {what}: {path}")
    if not path.is_file():
        raise DataError(f"{path} is not a {what} but {'a directory' if path.is_dir() else 'a pipe or device'}")
    return path


def read_text(path: Path, what: str = "file") -> str:
    """A text file in UTF-8, without its byte order mark; what is no plain file or no text is a `DataError` about a `what`."""
    content = read_bytes(path, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text; a {what} is text in UTF-8 ({error})") from error


def read_json(path: Path, what: str = "file") -> dict[str, Any]:
    """A JSON mapping; anything else is a `DataError` about a `what`."""
    text = read_text(path, what)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: a {what} is JSON ({str(error)[:200]})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: a {what} is a JSON mapping, got {type(found).__name__}")
    return found


def read_bytes(path: Path, what: str = "file") -> bytes:
    """A whole file; what is no plain file, cannot be read or is larger than any text is a `DataError` about a `what`."""
    path = require_file(path, what)
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"{path} is larger than {MAX_TEXT_BYTES:,} bytes, which no {what} needs")
    return content


def matching(pattern: str, base: Path | None = None) -> list[Path]:
    """The files and directories that `pattern` means, sorted: the path itself where it exists, else what the glob finds.

    A relative pattern is taken from `base` (or the working directory), whose own name is never read as a pattern.
    """
    literal = Path(pattern).expanduser()
    placed = literal if base is None else base / literal
    if placed.exists() or not glob.has_magic(pattern):
        return [placed] if placed.exists() else []
    found = glob.glob(absolute_pattern(pattern, base) if base is not None else str(literal), recursive=True)  # noqa: PTH207
    return sorted(Path(path) for path in found)


def absolute_pattern(pattern: str, base: Path | None = None) -> str:
    """The same pattern from everywhere; characters of the directory that it is taken from are not part of it."""
    path, directory = Path(pattern).expanduser(), base or Path.cwd()
    if path.is_absolute():
        return str(path)
    literal = directory / path
    return str(literal if literal.exists() or not glob.has_magic(pattern) else Path(glob.escape(str(directory))) / path)


def files_named(name: str, directories: Sequence[Path]) -> list[Path]:
    """The files of exactly this name in and below `directories`, sorted within each."""
    return [
        path
        for directory in directories
        for path in sorted(Path(directory).rglob("*"))
        if path.name == name and path.is_file()
    ]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
