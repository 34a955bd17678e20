"""Who runs: a process of one machine, told apart from a later one with the same number."""

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunnerIdentity:
    """One run of `steval batch`."""

    id: str
    host: str
    """Machine and, in containers, the process namespace."""
    pid: int
    born: str
    """When the process began, in the system's own count; empty where the system does not tell."""


def own_identity() -> RunnerIdentity:
    """This process, as one runner among others."""
    pid = os.getpid()
    host = _host()
    return RunnerIdentity(f"{host}/{pid}/{secrets.token_hex(4)}", host, pid, _born(pid))


def is_gone(runner: RunnerIdentity) -> bool:
    """Whether the process certainly does not exist any more; False where that cannot be known (another machine)."""
    if runner.host != _host():
        return False
    try:
        os.kill(runner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(runner.born) and _born(runner.pid) != runner.born


def _host() -> str:
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{namespace.readlink() if namespace.exists() else ''}"


def _born(pid: int) -> str:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]
