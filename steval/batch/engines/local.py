"""The local engine: worker processes of this machine, as many as cores and memory allow.

Processes are started anew (`spawn`), so a program of your own that runs a batch needs `if __name__ == "__main__":`.
"""

import logging
import multiprocessing
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from steval.batch.engines.worker import READY, work
from steval.batch.jobs import Outcome, Task
from steval.batch.settings import Running
from steval.errors import ConfigError
from steval.limits import require_processes
from steval.machine import available_memory, num_cores
from steval.wording import memory_size

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
CLOSE_SECONDS = 5.0
START_SECONDS = 300.0
"""For a worker to load its libraries; a second or two where nothing else runs."""
LEAST_ADDRESS_SPACE = 3 * 2**29
"""Bytes of addresses that a worker's libraries take, and some for its work: 1.1 GB were measured."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    gpu: int | None = None
    task: Task | None = None
    is_ready: bool = False
    """Whether it has loaded its libraries."""
    since: float = 0.0
    """When it was started, or began its task."""
    stopped: str = ""
    """Why the engine killed it."""
    handover: threading.Thread | None = None

    def give(self, task: Task, gpu: int | None) -> None:
        """Hand over a task without waiting until it is read: a thread does that, which ends with the worker at the latest."""
        self.task, self.gpu, self.since = task, gpu, time.monotonic()
        message = (task, "cpu" if gpu is None else f"cuda:{gpu}")
        self.handover = threading.Thread(target=self._send, args=(message,), name="steval-handover", daemon=True)
        self.handover.start()

    def _send(self, message: object) -> None:
        with suppress(OSError):  # the worker is dead, which shows at its end of the pipe
            self.pipe.send(message)

    def overdue(self) -> str:
        """Why it is taken for hung; empty while it is not."""
        assert self.task is not None
        limit = self.task.seconds if self.is_ready else START_SECONDS
        if time.monotonic() - self.since <= limit:
            return ""
        if self.is_ready:
            return f"it took longer than {limit:.0f} s (run.task_seconds), and was stopped"
        return f"it did not start within {limit:.0f} s, and was stopped; is there enough memory, and processor time?"

    def kill(self) -> None:
        """End it and take its pipe away, once the thread that may still hand over has ended."""
        self.process.kill()
        self.process.join(CLOSE_SECONDS)
        if self.handover is not None:
            self.handover.join(CLOSE_SECONDS)
        self.pipe.close()


class LocalEngine:
    """See the module. `workers` None: one for each `threads` cores."""

    name = "local"

    def __init__(self, running: Running):
        if running.gpus and not running.machine_gpus:
            raise ConfigError(f"run.gpus asks for {running.gpus:g} for each prediction, and run.machine_gpus is 0")
        _require_address_space()
        require_processes(running.threads, "run.threads")
        self._running = running
        self._most = running.workers or max(1, num_cores() // running.threads)
        memory = running.memory_gb * 2**30 if running.memory_gb else MEMORY_SHARE * available_memory()
        self._memory = int(memory)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._queue: deque[Task] = deque()
        self._deaths: dict[tuple[str, str], int] = {}
        self._withdrawn: set[str] = set()

    @property
    def capacity(self) -> int:
        """Twice the workers: a worker that gets free finds its next task waiting."""
        return 2 * self._most

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)
        self._start_some()

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes of finished tasks; a task whose worker died or took too long is queued again, up to `retries` times."""
        self._start_some()
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        outcomes: list[Outcome] = []
        for pipe in wait(list(busy), timeout=seconds):
            assert isinstance(pipe, Connection)
            outcomes += self._heard(busy[pipe])
        for worker in list(self._workers):
            if worker.task is not None and (why := worker.overdue()):
                worker.stopped = why
                outcomes += self._buried(worker)
        self._start_some()
        return [outcome for outcome in outcomes if outcome.task.owner not in self._withdrawn]

    def withdraw(self, owner: str) -> None:
        """Drop the owner's tasks that wait; what its workers are at is let finish, and not told."""
        self._withdrawn.add(owner)
        self._queue = deque(task for task in self._queue if task.owner != owner)

    def close(self) -> None:
        """Let idle workers go home, end the others: those that do not end within seconds are killed."""
        self._queue.clear()
        for worker in self._workers:
            if worker.task is not None or not worker.is_ready:
                worker.process.terminate()
            else:
                worker.pipe.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._workers.clear()

    def _heard(self, worker: _Worker) -> list[Outcome]:
        """What a worker says: that it is ready, how its task ended, or nothing more, ever."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            return self._buried(worker)
        if said == READY:
            worker.is_ready, worker.since = True, time.monotonic()
            return []
        task, worker.task = worker.task, None
        assert task is not None
        return [Outcome(task, **said)]

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
            (self._idle() or self._hire()).give(self._queue.popleft(), gpu)

    def _idle(self) -> _Worker | None:
        """A worker without a task; those that died meanwhile are let go, which is no task's fault."""
        for worker in [one for one in self._workers if one.task is None]:
            if worker.process.is_alive():
                return worker
            self._workers.remove(worker)
            worker.kill()
        return None

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
        worker = _Worker(process, ours, since=time.monotonic())
        self._workers.append(worker)
        return worker

    def _buried(self, worker: _Worker) -> list[Outcome]:
        """Replace a dead worker; its task waits again, or is given up."""
        self._workers.remove(worker)
        worker.process.join(0.0 if worker.stopped else CLOSE_SECONDS)
        worker.kill()
        task, code = worker.task, worker.process.exitcode
        assert task is not None
        if task.owner in self._withdrawn:
            return []
        key = (task.owner, str(task.output))
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        how = worker.stopped or (f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")
        if deaths <= self._running.retries:
            logger.warning(
                "a worker died (%s) in: %s; trying again (%d of %d)", how, task.name, deaths, self._running.retries
            )
            self._queue.appendleft(task)
            return []
        advice = (
            ""
            if worker.stopped
            else "; signal 9 mostly means that memory ran out: give fewer workers, or a smaller chunk"
        )
        text = f"its worker died {deaths} times ({how}){advice}"
        return [Outcome(task, error=text, error_kind="WorkerDied")]


def _require_address_space() -> None:
    """With fewer addresses a worker hangs or dies while its libraries are loaded, each in a way of its own."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"processes here may have {memory_size(limit)} of addresses (ulimit -v), and a worker takes at least "
            f"{memory_size(LEAST_ADDRESS_SPACE)}; raise the limit, or lift it with: ulimit -v unlimited"
        )


@contextmanager
def _without_ctrl_c() -> Generator[None]:
    """Ctrl-C reaches every process of a terminal; those started here leave it to the runner, whose signals they inherit."""
    resource_tracker.ensure_running()  # starting it lets the signal through again
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
