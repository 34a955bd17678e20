"""Cases run beside each other, in processes that fork their commands each from a server of its own."""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from tests.support.mutations.cases import make_case
from tests.support.mutations.commands import write_valid_inputs
from tests.support.mutations.forking import CommandServer
from tests.support.mutations.judge import contents, problems_of

PROCESSES = 2
"""Commands at a time: as many as CI has processors."""


@dataclass(frozen=True)
class Bench:
    """What all cases start from."""

    valid: Path
    """Where inputs that work are put (`write_valid_inputs`)."""
    environment: dict[str, str]
    scratch: Path
    """For whatever the processes need."""
    taken_port: int


@dataclass(frozen=True)
class _Process:
    bench: Bench
    server: CommandServer
    own: Path
    temporary: Path


_here: _Process | None = None
"""Set once in each process of the pool."""


@contextmanager
def running(bench: Bench, numbers: Iterable[int]) -> Iterator[dict[int, "Future[str]"]]:
    """What is wrong with the case of each number, empty where nothing is; they are worked off in order."""
    context = get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_start, initargs=(bench,)) as pool:
        try:
            written, _ = (
                pool.submit(_write),
                pool.submit(os.getpid),
            )  # one process for each: all servers import meanwhile
            written.result()
            yield {number: pool.submit(_run, number) for number in numbers}
        finally:
            pool.shutdown(cancel_futures=True)


def _start(bench: Bench) -> None:
    global _here
    own = bench.scratch / str(os.getpid())
    for name in ("streams", "temporary"):
        (own / name).mkdir(parents=True)
    own_bench = replace(bench, environment=bench.environment | {"TMPDIR": str(own / "temporary")})
    server = CommandServer(own / "streams")
    server.__enter__()  # its process ends with this one, which closes its standard input
    _here = _Process(own_bench, server, own, own / "temporary")


def _write() -> None:
    assert _here is not None
    write_valid_inputs(_here.bench.valid, _here.server, _here.bench.environment)


def _run(number: int) -> str:
    assert _here is not None
    bench, place = _here.bench, _here.own / "place"
    case = make_case(number, bench.valid, place, bench.environment, bench.taken_port)
    before = contents(place)
    ended = _here.server.run(case.started)
    problems = problems_of(case, ended, before, place, _here.temporary)
    shutil.rmtree(place)
    for left in _here.temporary.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if not problems:
        return ""
    return (
        f"{problems}\nsteval {' '.join(map(repr, case.started.arguments))}\n"
        + "\n".join(f"  {change}" for change in case.told)
        + f"\nexit code {ended.code}\n{ended.stdout[-1500:]}\n{ended.stderr[-4000:]}"
    )
