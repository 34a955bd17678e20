"""Directories that the workers of one running service share, and no other service or user."""

import os
import shutil
import tempfile
from pathlib import Path

from steval.errors import ServiceError


def shared_directory(purpose: str) -> Path:
    """A private directory of this worker's supervisor; those of supervisors that are gone are removed."""
    prefix = f"steval-{purpose}-{os.getuid()}-"
    parent = Path(tempfile.gettempdir())
    if Path("/proc/self").exists():
        for left in parent.glob(f"{prefix}*"):
            if not Path(f"/proc/{left.name.removeprefix(prefix)}").exists():
                shutil.rmtree(left, ignore_errors=True)
    directory = parent / f"{prefix}{os.getppid()}"
    # root's scoring jobs run under other ids, and pass through to a directory whose name nobody can guess
    directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise ServiceError(f"{directory} belongs to another user", status=500, code="internal_error")
    return directory
