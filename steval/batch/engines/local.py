"""The local engine: worker processes of this machine, as many as cores and memory allow.

Processes are started anew (`spawn`), so a program of your own that runs a batch needs `if __name__ == "__main__":`.
"""

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from steval.batch.engines.worker import work
from steval.batch.jobs import Outcome, Task
from steval.batch.settings import Running
from steval.errors import ConfigError
from steval.machine import num_cores

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
CLOSE_SECONDS = 5.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    gpu: int | None = None
    task: Task | None = None


class LocalEngine:
    """See the module. `workers` None: one for each `threads` cores."""

    name = "local"

    def __init__(self, running: Running):
        if running.gpus and not running.machine_gpus:
            raise ConfigError(f"run.gpus asks for {running.gpus:g} for each prediction, and run.machine_gpus is 0")
        self._running = running
        self._most = running.workers or max(1, num_cores() // running.threads)
        memory = running.memory_gb * 2**30 if running.memory_gb else MEMORY_SHARE * available_memory()
        self._memory = int(memory)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._queue: deque[Task] = deque()
        self._deaths: dict[str, int] = {}

    @property
    def capacity(self) -> int:
        """Twice the workers: a worker that gets free finds its next task waiting."""
        return 2 * self._most

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)
        self._start_some()

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes of finished tasks; a task whose worker died is queued again, up to `retries` times."""
        self._start_some()
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        outcomes: list[Outcome] = []
        for pipe in wait(list(busy), timeout=seconds):
            assert isinstance(pipe, Connection)
            worker = busy[pipe]
            try:
                outcomes.append(worker.pipe.recv())
                worker.task = None
            except (EOFError, OSError):
                outcomes += self._buried(worker)
        self._start_some()
        return outcomes

    def close(self) -> None:
        """Let idle workers go home, kill the others."""
        self._queue.clear()
        for worker in self._workers:
            worker.pipe.close()
            if worker.task is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(CLOSE_SECONDS)
            worker.process.kill()
        self._workers.clear()

    def _start_some(self) -> None:
        """Give waiting tasks to free workers while memory, GPUs and the number of workers allow it."""
        while self._queue:
            busy = [worker for worker in self._workers if worker.task is not None]
            task = self._queue[0]
            used = sum(worker.task.memory for worker in busy if worker.task is not None)
            if len(busy) >= self._most or (busy and used + task.memory > self._memory):
                return
            gpu = self._free_gpu(busy, task)
            if task.gpus and gpu is None:
                return
            worker = next((one for one in self._workers if one.task is None), None) or self._hire()
            try:
                worker.pipe.send((task, "cpu" if gpu is None else f"cuda:{gpu}"))
            except OSError:
                self._workers.remove(worker)
                worker.process.join(CLOSE_SECONDS)
                continue
            self._queue.popleft()
            worker.task, worker.gpu = task, gpu

    def _free_gpu(self, busy: list[_Worker], task: Task) -> int | None:
        if not task.gpus:
            return None
        loads = [0.0] * self._running.machine_gpus
        for worker in busy:
            if worker.gpu is not None and worker.task is not None:
                loads[worker.gpu] += worker.task.gpus
        fitting = [gpu for gpu, load in enumerate(loads) if load + min(task.gpus, 1.0) <= 1.0 + 1e-9]
        return fitting[0] if fitting else None

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, self._running.threads), daemon=True)
        with _without_ctrl_c():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _buried(self, worker: _Worker) -> list[Outcome]:
        """Replace a dead worker; its task waits again, or is given up."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(CLOSE_SECONDS)
        task, code = worker.task, worker.process.exitcode
        assert task is not None
        deaths = self._deaths[str(task.output)] = self._deaths.get(str(task.output), 0) + 1
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if deaths <= self._running.retries:
            logger.warning(
                "a worker died (%s) in: %s; trying again (%d of %d)", how, task.name, deaths, self._running.retries
            )
            self._queue.appendleft(task)
            return []
        text = (
            f"its worker died {deaths} times ({how}); signal 9 mostly means that memory ran out: give fewer workers, or a smaller "
            "chunk"
        )
        return [Outcome(task, error=text, error_kind="WorkerDied")]


@contextmanager
def _without_ctrl_c() -> Generator[None]:
    """Ctrl-C reaches every process of a terminal; those started here leave it to the runner, whose signals they inherit."""
    resource_tracker.ensure_running()  # starting it lets the signal through again
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def available_memory() -> int:
    """Bytes that are free, within the limit of the container or batch job."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            free = min(free, int(text))
    return free
