"""The Ray engine: the same tasks on a cluster, or on a fresh one of this machine.

Workers read checkpoints and data themselves, where they are; a task carries names and numbers only. On several machines the
output directory must be on storage that all of them see, and steval must be installed on each.
"""

import faulthandler
import importlib
import importlib.util
import logging
import os
import socket
from typing import Any

from steval.batch.jobs import Outcome, Task
from steval.batch.settings import Running
from steval.errors import ConfigError
from steval.machine import THREAD_VARIABLES, num_cores
from steval.wording import needs_extra, whole_number

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
STORE_BYTES = 100 * 2**20
"""Nothing large passes through Ray's object store."""


class RayEngine:
    """See the module. `run.address` None starts a cluster of `run.workers` workers here and stops it at the end."""

    name = "ray"

    def __init__(self, running: Running):
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(needs_extra("the ray engine", "Ray", "ray"))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray: Any = importlib.import_module("ray")
        self._ray, self._running = ray, running
        if running.address is not None:
            _require_reachable(running.address)
        workers = running.workers or max(1, num_cores() // running.threads)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        try:
            if running.address is not None:
                ray.init(address=running.address, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=workers * running.threads,
                    object_store_memory=STORE_BYTES,
                    include_dashboard=False,
                    **quiet,
                )
        except Exception as error:  # of a node that does not come up Ray raises a bare one
            where = running.address or "a fresh cluster on this machine"
            raise ConfigError(f"cannot start Ray ({where}): {error}") from error
        resources = ray.cluster_resources()
        self._memory = resources.get("memory", float("inf"))
        self._cpus = resources.get("CPU", 0)
        if running.gpus > resources.get("GPU", 0):
            ray.shutdown()
            raise ConfigError(
                f"run.gpus asks for {running.gpus:g} for each prediction, and the Ray cluster has {resources.get('GPU', 0):g}"
            )
        self._running_refs: dict[Any, Task] = {}
        environment = {variable: str(running.threads) for variable in THREAD_VARIABLES}
        self._function = ray.remote(_perform)
        self._options = {"max_retries": running.retries, "runtime_env": {"env_vars": environment}}

    @property
    def capacity(self) -> int:
        """Twice the tasks that fit on the cluster, so that a free worker finds its next one; on a foreign cluster `workers`."""
        if self._running.address is not None and self._running.workers:
            return self._running.workers
        return 2 * max(1, int(self._cpus // self._running.threads))

    def submit(self, task: Task) -> None:
        """Hand a task to Ray with its cores, memory and GPUs."""
        memory = int(min(task.memory, self._memory))
        function = self._function.options(
            num_cpus=self._running.threads, num_gpus=task.gpus, memory=memory, **self._options
        )
        self._running_refs[function.remote(task)] = task

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes of finished tasks; Ray has tried those of dead workers again, up to `retries` times."""
        if not self._running_refs:
            return []
        done, _ = self._ray.wait(list(self._running_refs), num_returns=1, timeout=seconds)
        outcomes = []
        for reference in done:
            task = self._running_refs.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                kind, text = type(error).__name__, str(error).strip().splitlines()[0]
                outcomes.append(Outcome(task, error=f"its worker died ({kind}): {text}", error_kind="WorkerDied"))
        return outcomes

    def withdraw(self, owner: str) -> None:
        """Cancel the owner's tasks."""
        for reference in [one for one, task in self._running_refs.items() if task.owner == owner]:
            self._ray.cancel(reference, force=True)
            del self._running_refs[reference]

    def close(self) -> None:
        """Cancel what runs and leave the cluster; a fresh one ends."""
        for reference in self._running_refs:
            self._ray.cancel(reference, force=True)
        self._running_refs.clear()
        self._ray.shutdown()


def _require_reachable(address: str) -> None:
    """Whether anybody listens at `host:port`; Ray itself goes on trying for many minutes. `auto` finds its own address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    number = whole_number(port)
    if number is None:
        return
    try:
        socket.create_connection((host, number), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start one with: ray start --head"
        ) from error


def _perform(task: Task) -> Outcome:
    from steval.batch.work.tasks import perform

    # a task that takes too long ends its process, which Ray tries again like a worker that died
    faulthandler.dump_traceback_later(task.seconds, exit=True)
    try:
        return perform(task, "cuda" if task.gpus else "cpu")
    finally:
        faulthandler.cancel_dump_traceback_later()
