"""A file's structure read on trial, in a process that may be lost: HDF5 crashes on some damage, and on some it never ends.

Every command that reads cells begins so (`CellFile.open`). The child is a fork, so it costs milliseconds; it visits groups,
attributes and indices of chunks, and no values.
"""

import faulthandler
import os
import resource
import select
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import h5py

from steval.errors import DataError

SECONDS = 30
"""Of processor time for the structure of a file; real ones take milliseconds."""
MEMORY = 4 * 2**30
"""Bytes for it."""
PATIENCE = 300.0
"""Seconds after which a child that computes nothing (a network's disk that does not answer) is given up without a verdict."""
_TOO_LARGE = 3
READ = ("X", "obs", "var", "uns", "obsm")
"""Parts of an h5ad that commands read; damage in others is nobody's matter, unless the whole is read."""
_Signature = tuple[int, int, int, int, bool]
_FINE: set[_Signature] = set()
"""Files whose structure was read to its end, as they are now."""


def require_readable_structure(path: Path, *, whole: bool = False) -> None:
    """A `DataError` where HDF5 crashes on the structure of the file `path`, or does not come to its end; Linux alone.

    `whole`: of all that is in it, not of the parts in `READ` alone.
    """
    if sys.platform != "linux":
        return
    status = Path(path).stat()
    signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, whole)
    if signature in _FINE:
        return
    code = _tried(path, whole)
    if code == -signal.SIGXCPU:
        raise _damaged(path, f"reading its structure does not end within {SECONDS} seconds")
    if code is not None and code < 0:
        raise _damaged(path, f"the HDF5 library crashes on it (signal {-code})")
    if code == _TOO_LARGE:
        raise _damaged(path, f"its structure claims more than {MEMORY >> 30} GB")
    if code is not None:
        _FINE.add(signature)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}. Write it anew, or copy it again from where it came")


def _tried(path: Path, whole: bool) -> int | None:
    """The exit code of the child, negative for a signal; None where there is no verdict."""
    with warnings.catch_warnings():
        # of forks beside threads: the child takes no lock of theirs but h5py's, which knows of forks
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError:  # no room for another process: the file is read without a trial
            return None
    if not child:
        _become_trial(path, whole)
    try:
        handle = os.pidfd_open(child)
    except OSError:  # a kernel or container without it, no descriptor left
        _end(child)
        return None
    try:
        waiting = select.poll()  # `select` itself knows no descriptor above 1,023
        waiting.register(handle, select.POLLIN)
        if not waiting.poll(PATIENCE * 1000):
            _end(child)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:  # somebody waits for all children of this process
        return None
    except BaseException:  # Ctrl-C, say: no child stays behind
        _end(child)
        raise
    finally:
        os.close(handle)


def _end(child: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become_trial(path: Path, whole: bool) -> None:
    """In the child: never returns. What can be read, or fails with an error, is left to whoever reads the file."""
    code = 0
    try:
        faulthandler.disable()
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        for kind, wanted in (
            (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, held + MEMORY),
        ):  # fmt: skip
            limits = resource.getrlimit(kind)
            least = min([wanted, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
            resource.setrlimit(kind, (least, limits[1]))
        _visit(path, whole)
    except MemoryError:
        code = _TOO_LARGE
    except BaseException:  # noqa: BLE001  nothing of this copy of the program may go on
        code = 0
    finally:
        os._exit(code)


def _visit(path: Path, whole: bool) -> None:
    def look(_: str, item: h5py.Group | h5py.Dataset) -> None:
        try:
            for name in item.attrs:
                item.attrs[name]
            if isinstance(item, h5py.Dataset) and item.chunks is not None:
                item.id.get_num_chunks()
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError):
            return

    with h5py.File(path, "r") as file:
        look("/", file)
        for name in file if whole else READ:
            item = file.get(name)
            if item is not None:
                look(name, item)
            if isinstance(item, h5py.Group):
                item.visititems(look)
