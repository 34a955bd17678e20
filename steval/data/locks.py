"""One command at a time in a directory: a lock that ends with its process, however that ends.

A directory that a command owns (a run, a score, a batch's output) is locked by `flock` on the file `.lock` in it. The kernel
gives the lock back when the process is gone, so a crash leaves at most a file that nobody holds. It holds among the processes of
one machine on any local file system, and across machines where the file system passes `flock` on: NFS from version 4 (Linux makes
a lock of the server's of it), CephFS, GPFS, Lustre mounted with `flock`; not on Lustre mounted without or with `localflock`, nor
on NFS with `nolock` or `local_lock=flock`. Where there are no locks at all a warning says so.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from steval.data.files import require_directory
from steval.errors import ConfigError

LOCK_NAME = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

logger = logging.getLogger(__name__)


class DirectoryLock:
    """Holds `directory` for this process from `with` to its end, or from `acquire` to `release`; makes it where it is not there."""

    def __init__(self, directory: Path):
        self.path = Path(directory) / LOCK_NAME
        self._handle: int | None = None

    def acquire(self) -> Self:
        """Take the lock; raises `ConfigError` that says who has it."""
        require_directory(self.path.parent)
        while self._handle is None:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                raise ConfigError(
                    f"{self.path.parent} is in use by another steval command ({holder or 'it did not say which'}). Wait until it "
                    "ends, stop it, or choose another directory"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(handle)
                    raise ConfigError(f"cannot lock {self.path.parent}: {error.strerror}") from error
                logger.warning(
                    "warning: the file system of %s has no locks: nothing keeps a second command out of it",
                    self.path.parent,
                )
            if self._is_current(handle):
                self._handle = handle
            else:  # its holder removed the file between our opening and our locking it
                os.close(handle)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return self

    def release(self) -> None:
        """Give it back and remove its file; a second time does nothing."""
        if self._handle is None:
            return
        with contextlib.suppress(FileNotFoundError):  # the directory itself may be gone
            self.path.unlink()
        os.close(self._handle)
        self._handle = None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot lock {self.path.parent}: {error.strerror} ({self.path})") from error

    def _is_current(self, handle: int) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        held = os.fstat(handle)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
