"""Files written beside their final name and moved into place, and their content digests."""

import hashlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from steval.errors import ConfigError, DataError, OutputError


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, otherwise removed.

    A reader sees the old file or the whole new one, never a part (also after a kill: only a `.part` file may remain).
    """
    path = Path(path)
    require_directory(path.parent)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a directory")
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
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
        raise DataError(f"{path} is not a {what} but a directory")
    return path


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
