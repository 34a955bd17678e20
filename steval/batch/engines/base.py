"""What the runner asks of an engine: take tasks, say how each ended."""

from typing import Protocol

from steval.batch.jobs import Outcome, Task


class Engine(Protocol):
    """Does tasks on this machine or on many, for one runner at a time.

    Every accepted task comes back once from `wait`, whatever happens to it, unless its owner has withdrawn.
    """

    name: str

    @property
    def capacity(self) -> int:
        """Tasks worth having accepted at one time."""
        ...

    def submit(self, task: Task) -> None:
        """Accept a task."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Tasks that ended, or an empty list after `seconds`. The death of a worker is the engine's to repair."""
        ...

    def withdraw(self, owner: str) -> None:
        """Forget the tasks of a runner that has ended: none of them is begun any more, and no outcome comes back."""
        ...

    def close(self) -> None:
        """Stop everything at once; unfinished tasks leave nothing under a final name."""
        ...
