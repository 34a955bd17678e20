"""The two threads of a worker that compute with tensors: one for every pass through a network, one that loads models.

OpenMP keeps helpers for each thread that computes, as long as that thread lives. GNU's lets them wait for the next layer awake only
while there are no more of them than processors: with those of a second thread, even an idle one, they sleep and are woken at every
layer, a tenth of a pass (docs/performance.md). So networks share one thread, and the one that loads ends when it has nothing to do.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class NetworkThread:
    """Runs the batches of all models, one after another in the order they came; the thread ends when nobody has this any more."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="steval-network")

    def run(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in the thread; waits for those that came before."""
        return self._executor.submit(function).result()


class PassingThread:
    """Runs functions one after another in a thread that lives as long as there are any; errors are those of the futures."""

    def __init__(self, name: str):
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, function: Callable[[], None]) -> "Future[None]":
        """The future of `function`, cancelled at once after `close`."""
        future: Future[None] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
                return future
            self._waiting.append((future, function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return future

    def close(self) -> None:
        """Cancel what waits, finish what is running."""
        with self._lock:
            self._closed = True
            waiting, thread = list(self._waiting), self._thread
            self._waiting.clear()
        for future, _ in waiting:
            future.cancel()
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                future, function = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                function()
            except BaseException as error:  # noqa: BLE001 (the future's)
                future.set_exception(error)
            else:
                future.set_result(None)
