"""An engine that does each task at once, in the test's own process: what runner and tasks do without processes around them."""

from collections.abc import Callable
from pathlib import Path

from steval.batch.jobs import Outcome, Task
from steval.batch.ledger import Ledger, ledger_path
from steval.batch.plan import BatchPlan, plan_batch
from steval.batch.runner import RunCounts, Runner
from steval.batch.settings import BatchManifest, out_dir
from steval.batch.work.tasks import perform


class InProcessEngine:
    """`before` is called with each task; what it returns, if anything, is the outcome."""

    name = "in-process"
    capacity = 1

    def __init__(self, before: Callable[[Task], Outcome | None] | None = None):
        self.done: list[Task] = []
        self._before = before
        self._outcomes: list[Outcome] = []

    def submit(self, task: Task) -> None:
        answer = self._before(task) if self._before else None
        self._outcomes.append(answer or perform(task))
        self.done.append(task)

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def withdraw(self, owner: str) -> None:
        self._outcomes = [one for one in self._outcomes if one.task.owner != owner]

    def close(self) -> None:
        pass


def plan_of(path: Path) -> BatchPlan:
    """The plan of a manifest file; digests are not kept."""
    manifest = BatchManifest.load(path)
    with Ledger(":memory:") as ledger:
        return plan_batch(manifest, path, lambda place: ledger.stamp(place, out_dir(manifest, path) / "fetched"))


def run_in_process(path: Path, engine: InProcessEngine | None = None, plan: BatchPlan | None = None) -> RunCounts:
    """Run a manifest file on its ledger."""
    plan = plan or plan_of(path)
    with Ledger(ledger_path(plan.layout.root, None)) as ledger:
        return Runner(plan, plan.jobs, ledger, engine or InProcessEngine()).run()
