"""Who runs: a process of one machine, told apart from a later one with the same number."""

import os
import secrets
from dataclasses import dataclass

from steval.machine import machine_name, process_birth, process_is_gone


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
    pid, host = os.getpid(), machine_name()
    return RunnerIdentity(f"{host}/{pid}/{secrets.token_hex(4)}", host, pid, process_birth(pid))


def is_gone(runner: RunnerIdentity) -> bool:
    """Whether the process certainly does not exist any more; False where that cannot be known (another machine)."""
    return runner.host == machine_name() and process_is_gone(runner.pid, runner.born)
