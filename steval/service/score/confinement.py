"""Takes away from the process of a scoring job what scoring does not need, before it opens a stranger's file.

HDF5 is a large library in C, the version in h5py's wheel has published overflows, and uploads are opened with it. So the job gets
limits on memory, processor time, files and their size; no network (a network namespace of its own, and Landlock's rule for
TCP); no way back to privileges; a user id of its own where the service runs as root; and a view of the file system (Landlock)
in which it may read programs and what it was given, and write into its own directory. Where the system lacks a part, the
others hold, and `confine` returns the sentence for the log.

Linux's own calls through ctypes: no maintained package offers them. Sources: landlock(7), unshare(2), prctl(2),
include/uapi/linux/landlock.h.
"""

import contextlib
import ctypes
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from steval.wording import counted

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_BELOW_PATH = 1
_READ = (1 << 0) | (1 << 2) | (1 << 3)
"""Landlock's rights to execute, to read files, to read directories."""
_OF_FILES = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14)
"""Those that a file can have, as directories have all: also to write and to truncate."""
_NETWORK, _SCOPES = 0b11, 0b11
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of Landlock's file rights a version knows; later ones know the last number."""
_FIRST_USER, _NUM_USERS = 61_184, 4096
"""User ids that systemd keeps for services without an account."""
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/opt", "/proc", "/sys", "/dev/urandom", "/dev/null"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/fonts", "/etc/passwd", "/etc/nsswitch.conf", "/etc/mime.types"),
)


@dataclass(frozen=True)
class Limits:
    """Of one job."""

    memory: int
    """Bytes of address space."""
    seconds: int
    """Of processor time, over all threads."""
    file_bytes: int
    """Of any file that it writes."""
    open_files: int = 512


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("parent", ctypes.c_int32))


def confine(directory: Path, inputs: Path, readable: Iterable[Path], limits: Limits) -> list[str]:
    """Confine this process, which must have one thread yet; it may write below `directory`, read below `inputs` and `readable`.

    As root both directories are handed to the user id that the process takes.

    Returns a sentence for each part that this system does not offer. A `RuntimeError` where there are more threads: they would
    keep the rights that are taken here.
    """
    if (threads := _num_threads()) != 1:
        raise RuntimeError(
            f"{counted(threads, 'thread')} at the time of confinement; what starts them is to be imported later"
        )
    missing: list[str] = []
    given = [inputs, *(path for path in readable if path.exists())]
    _limit(limits)
    if not _leave_the_network():
        missing.append("the system gives no network namespace, so only Landlock keeps the job from the network")
    if os.geteuid() == 0 and (reason := _become_nobody(directory, inputs, given)):
        missing.append(f"the job keeps the user id of root: {reason}")
    if not _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing.append("privileges may come back through programs that give them")
    if (reason := _restrict_files(directory, [*_programs(), *given])) is not None:
        missing.append(f"the file system is open to the job: {reason}")
    end_with_parent()
    return missing


def take_back(directory: Path) -> None:
    """Own again what a confined process wrote, without links and pipes that others, with more rights, would follow."""
    if os.geteuid() == 0:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, 0, 0, follow_symlinks=False)
    for folder, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(folder, name)
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                path.unlink()


def _num_threads() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))


def end_with_parent() -> None:
    """Have the system kill this process when the thread that started it ends; user ids must not change afterwards."""
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _limit(limits: Limits) -> None:
    for kind, wanted in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def _leave_the_network() -> bool:
    """A network namespace without devices; users other than root need a user namespace for it, where they are themselves."""
    if os.geteuid() == 0:
        return _call("unshare", _CLONE_NEWNET)
    user = os.geteuid()
    if not _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET):
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
    return True


def _become_nobody(directory: Path, inputs: Path, given: list[Path]) -> str | None:
    """Take a user id that nobody has and that owns the two directories alone; the reason where that user could not work."""
    user = _FIRST_USER + directory.stat().st_ino % _NUM_USERS
    for path in (directory, *directory.rglob("*"), inputs, *inputs.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    os.setgroups([])
    os.setresgid(user, user, -1)
    os.setresuid(-1, user, -1)
    needed = [directory, Path(__file__), Path(sys.executable), Path(os.__file__), *given]
    closed = [path for path in needed if not os.access(path, os.R_OK, effective_ids=True)]
    os.setresuid(-1, 0, -1)
    if closed:
        os.setresgid(0, 0, -1)
        return f"another could not read {closed[0]}"
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    return None


def _programs() -> list[Path]:
    """Where Python, its packages and the libraries below them lie; not the directory that the service was started in."""
    here = Path.cwd()
    places = [Path(entry) for entry in sys.path if entry and Path(entry) != here]
    places += [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    package = Path(__file__).parents[2]
    return [*map(Path, _SYSTEM), Path(sys.prefix), Path(sys.base_prefix), package, *places]


def _restrict_files(directory: Path, readable: Iterable[Path]) -> str | None:
    """Landlock; the reason where the system has none."""
    version = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return "this kernel has no Landlock"
    every = (1 << _RIGHTS_BY_ABI.get(version, max(_RIGHTS_BY_ABI.values()))) - 1
    wanted = _Ruleset(every, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _LIBC.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return os.strerror(ctypes.get_errno())
    try:
        for path in readable:
            _allow(ruleset, path, _READ)
        for path in (directory, Path("/dev/null")):
            _allow(ruleset, path, every)
        if _LIBC.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return os.strerror(ctypes.get_errno())
    finally:
        os.close(ruleset)
    return None


def _allow(ruleset: int, path: Path, rights: int) -> None:
    """Allow `rights` below a path; what is not there needs none."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _Beneath(rights if path.is_dir() else rights & _OF_FILES, handle)
        _LIBC.syscall(_ADD_RULE, ruleset, _BELOW_PATH, ctypes.byref(rule), 0)
    finally:
        os.close(handle)


def _call(name: str, *arguments: int) -> bool:
    """A function of libc that returns 0 where it went well; False also where there is no such function."""
    function = getattr(_LIBC, name, None)
    return function is not None and function(*(ctypes.c_ulong(argument) for argument in arguments)) == 0


_LIBC = ctypes.CDLL(None, use_errno=True)
