"""What the machine gives this process: processors, memory, how libraries use them, who else is there, what is installed."""

import math
import os
import platform
import socket
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS",
)  # fmt: skip
"""What the libraries ask for the number of their threads, when they are loaded."""
MAX_THREADS = 4096
"""More threads than any machine has processors are a slip of the keyboard, and take its memory."""
WAITING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
"""Idle OpenMP threads sleep soon: GNU's spin for milliseconds otherwise, LLVM's and Intel's for 200 ms, on processors that other
processes want. GNU's look for work 5,000 times, a fraction of a millisecond, which reaches to the next layer of a network: woken
for each, they take up to a quarter more time and may share a processor. By the policy they look 1,000 times where there are more of
them than processors, and not at all without it (docs/performance.md has what it costs and saves)."""
_GNU = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_TUNED_BY = {
    "OMP_WAIT_POLICY": _GNU,
    "GOMP_SPINCOUNT": _GNU,
    "KMP_BLOCKTIME": ("KMP_BLOCKTIME", "KMP_LIBRARY", "OMP_WAIT_POLICY"),
}
"""Variables by which a user has decided about waiting already."""


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Name → version of Python and of `packages`, for records; an image that only serves is without some of them."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine_name() -> str:
    """This machine and, in containers, the process namespace: where a process number means this or that process."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{namespace.readlink() if namespace.exists() else ''}"


def process_birth(pid: int) -> str:
    """When a process of this machine began, in the system's own count; empty where there is none, or the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]


def process_is_gone(pid: int, birth: str) -> bool:
    """Whether the process of this machine that began at `birth` certainly does not exist any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(birth) and process_birth(pid) != birth


def num_cores() -> int:
    """Processors that this process may use: those of its affinity mask, and no more than its control group's share of time."""
    visible = _visible_cores()
    return min(visible, processor_quota() or visible)


def processor_quota(root: Path = Path("/")) -> int | None:
    """Processors' worth of time that control groups (version 1 or 2) leave this process, rounded up; None: no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    shares = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            shares += [_share(directory / "cpu.max") for directory in _and_above(root / "sys/fs/cgroup", group)]
        elif "cpu" in controllers.split(","):
            mounts = (root / "sys/fs/cgroup" / name for name in (controllers, "cpu"))
            shares += [_old_share(directory) for mount in mounts for directory in _and_above(mount, group)]
    limits = [share for share in shares if share is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def thread_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment` before a library with threads is loaded; what its user has decided stays.

    Idle threads sleep soon, and where a control group leaves the process less time than it has processors, libraries that look at
    the processors alone start no more threads than it can keep busy.
    """
    added = {
        name: value for name, value in WAITING.items() if not any(other in environment for other in _TUNED_BY[name])
    }
    cores = num_cores()
    if cores < _visible_cores():
        added |= {name: str(cores) for name in THREAD_VARIABLES if name not in environment}
    return added


def available_memory() -> int:
    """Bytes that are free, within the limit of the container or batch job."""
    free = _of_meminfo("MemAvailable")
    return min([_physical_memory() if free is None else free, *_memory_limits()])


def total_memory() -> int:
    """Bytes that this process can have at most: the machine's, with what it swaps out, within the limits that it runs under."""
    import resource  # not on every system that the client runs on

    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    most = _physical_memory() + (_of_meminfo("SwapTotal") or 0)
    return min([most, *_memory_limits(), *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_meminfo(name: str) -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(fields[name].split()[0]) * 1024


def _memory_limits() -> list[int]:
    """Those of the control group, version 1 or 2."""
    found = []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            found.append(int(text))
    return found


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _and_above(mount: Path, group: str) -> list[Path]:
    """The group's directory and those above it; in a container its path may be the host's, and the mount is the group itself."""
    parts = [part for part in group.split("/") if part]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _share(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _old_share(directory: Path) -> float | None:
    try:
        quota, period = (int((directory / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
