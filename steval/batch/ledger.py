"""The ledger of a batch: which jobs are done, failed, or in whose hands; SQLite with write-ahead log.

A runner holds jobs as long as it shows life: its row in `runners` has a heartbeat, and on the same machine its process
exists. Jobs of a dead runner are free again. Write-ahead logs need one machine's memory: runners on several machines take
shards of the batch, each with a ledger of its own (`steval batch --shard`).
"""

import contextlib
import sqlite3
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steval.batch.identity import RunnerIdentity, is_gone
from steval.batch.jobs import Stamp, Task
from steval.batch.places import is_url, local_copy
from steval.data.files import require_directory, sha256_file
from steval.errors import BatchError, ConfigError, DataError

SCHEMA_VERSION = 2
APPLICATION_ID = 0x53544556
BUSY_SECONDS = 60.0
_SCHEMA = """
CREATE TABLE runners (id TEXT PRIMARY KEY, host TEXT, pid INTEGER, born TEXT, heartbeat REAL);
CREATE TABLE jobs (
    key TEXT PRIMARY KEY, name TEXT, state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'free')),
    runner TEXT, starts INTEGER NOT NULL DEFAULT 0, started REAL, finished REAL, error TEXT);
CREATE TABLE tasks (
    job TEXT, output TEXT, kind TEXT, units REAL, seconds REAL, finished REAL, PRIMARY KEY (job, output));
CREATE TABLE files (place TEXT PRIMARY KEY, num_bytes INTEGER, modified_ns INTEGER, sha256 TEXT);
"""


@dataclass(frozen=True)
class LedgerEntry:
    """What the ledger says of one job."""

    key: str
    state: str
    starts: int
    error: str | None
    started: float | None
    finished: float | None


class Ledger:
    """One open ledger; not shared between threads or processes, which open their own."""

    def __init__(self, path: Path | str):
        self.path = path
        self._seen: dict[str, tuple[float, float]] = {}
        """Runner → its last heartbeat, and since when by this process's own clock it has been that."""
        if path != ":memory:":
            require_directory(Path(path).parent)
        with contextlib.ExitStack() as on_error:
            try:
                self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
                on_error.callback(self._database.close)
                self._prepare()
            except sqlite3.OperationalError as error:
                raise ConfigError(
                    f"cannot open or make the ledger {path}: {error}. The directory must be writable and have space"
                ) from error
            except sqlite3.DatabaseError as error:
                raise ConfigError(
                    f"{path} is not a ledger of steval batch: {error}. Name another output directory"
                ) from error
            on_error.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, runner: RunnerIdentity) -> None:
        """Show life for the first time."""
        values = (runner.id, runner.host, runner.pid, runner.born, time.time())
        self._execute("INSERT OR REPLACE INTO runners VALUES (?, ?, ?, ?, ?)", values)

    def beat(self, runner: RunnerIdentity) -> None:
        """Show life again."""
        self._execute("UPDATE runners SET heartbeat = ? WHERE id = ?", (time.time(), runner.id))

    def leave(self, runner: RunnerIdentity) -> None:
        """Free what the runner still holds."""
        with self._saying(), self._transaction():
            self._execute("UPDATE jobs SET state = 'free' WHERE state = 'running' AND runner = ?", (runner.id,))
            self._execute("DELETE FROM runners WHERE id = ?", (runner.id,))

    def claim(self, key: str, name: str, runner: RunnerIdentity, lease_seconds: float, run_started: float) -> str:
        """Take a job: `claimed`, or why not: `held` by a live runner, `done`, or `failed` since `run_started`."""
        now = time.time()
        with self._saying(), self._transaction():
            row = self._execute("SELECT state, runner, finished FROM jobs WHERE key = ?", (key,)).fetchone()
            if row is not None:
                state, holder, finished = row
                if state == "running" and holder != runner.id and not self._is_gone(holder, lease_seconds, now):
                    return "held"
                if state == "done" or (state == "failed" and finished is not None and finished >= run_started):
                    return str(state)
            self._execute(
                "INSERT INTO jobs (key, name, state, runner, starts, started) VALUES (?, ?, 'running', ?, 1, ?) "
                "ON CONFLICT (key) DO UPDATE SET state = 'running', runner = excluded.runner, starts = starts + 1, "
                "started = excluded.started, finished = NULL, error = NULL",
                (key, name, runner.id, now),
            )
            return "claimed"

    def settle(self, key: str, runner: RunnerIdentity, error: str | None) -> bool:
        """Record the end of a job; False where another runner has taken it over meanwhile."""
        changed = self._execute(
            "UPDATE jobs SET state = ?, finished = ?, error = ? WHERE key = ? AND state = 'running' AND runner = ?",
            ("done" if error is None else "failed", time.time(), error, key, runner.id),
        )
        return changed.rowcount == 1

    def note(self, key: str, name: str, is_done: bool) -> None:
        """Bring the ledger in line with what is on disk: a whole result is done, a missing one is free."""
        state = "done" if is_done else "free"
        self._execute(
            "INSERT INTO jobs (key, name, state, finished) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "state = excluded.state WHERE state != 'running' AND (state = 'done' OR excluded.state = 'done')",
            (key, name, state, time.time()),
        )

    def states(self, keys: Sequence[str]) -> dict[str, LedgerEntry]:
        """What is known of these jobs."""
        wanted = set(keys)
        rows = self._execute("SELECT key, state, starts, error, started, finished FROM jobs")
        return {row[0]: LedgerEntry(*row) for row in rows if row[0] in wanted}

    def record_task(self, task: Task, seconds: float) -> None:
        """Keep how long a task took, for estimates."""
        values = (task.job.key, str(task.output), task.kind, task.units, seconds, time.time())
        self._execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?)", values)

    def rates(self) -> dict[str, tuple[float, int]]:
        """Seconds per unit of each kind of task, and how many were measured."""
        rows = self._execute("SELECT kind, sum(seconds), sum(units), count(*) FROM tasks GROUP BY kind")
        return {kind: (seconds / units, count) for kind, seconds, units, count in rows if units}

    def stamp(self, place: str, cache: Path) -> Stamp:
        """The file at a path or URL as it is now; its digest is computed once for each size and time of change."""
        path = local_copy(place, cache)
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"no such file: {place}" if not path.exists() else f"cannot read {place}: {error}"
            ) from error
        if not path.is_file():
            raise DataError(f"{place} is not a file")
        known = (status.st_size, status.st_mtime_ns)
        row = self._execute("SELECT num_bytes, modified_ns, sha256 FROM files WHERE place = ?", (place,)).fetchone()
        sha256 = row[2] if row is not None and row[:2] == known else sha256_file(path)
        self._execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (place, *known, sha256))
        return Stamp(place=place, num_bytes=known[0], modified_ns=0 if is_url(place) else known[1], sha256=sha256)

    def holders(self, keys: Sequence[str]) -> dict[str, str]:
        """Who holds these jobs: machine and process, job by job."""
        wanted = set(keys)
        rows = self._execute(
            "SELECT key, host, pid FROM jobs JOIN runners ON runner = runners.id WHERE state = 'running'"
        )
        return {key: f"process {pid} on {host.partition(':')[0]}" for key, host, pid in rows if key in wanted}

    def _is_gone(self, runner_id: str | None, lease_seconds: float, now: float) -> bool:
        row = self._execute("SELECT id, host, pid, born, heartbeat FROM runners WHERE id = ?", (runner_id,)).fetchone()
        if row is None:
            return True
        *identity, heartbeat = row
        if now - heartbeat > lease_seconds or is_gone(RunnerIdentity(*identity)):
            return True
        # the clock of another machine may be ahead: a heartbeat that does not move is none, whatever time it tells
        seen, since = self._seen.get(identity[0], (None, 0.0))
        if seen != heartbeat:
            self._seen[identity[0]] = (heartbeat, time.monotonic())
            return False
        return time.monotonic() - since > lease_seconds

    def _prepare(self) -> None:
        database = self._database
        version = database.execute("PRAGMA user_version").fetchone()[0]
        application = database.execute("PRAGMA application_id").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application != APPLICATION_ID or version != SCHEMA_VERSION):
            self._refuse(application, version)
        if self.path != ":memory:":
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        if tables:
            return
        with self._transaction():
            if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return  # another runner was quicker
            for statement in filter(str.strip, _SCHEMA.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _refuse(self, application: int, version: int) -> None:
        if application != APPLICATION_ID:
            raise ConfigError(
                f"{self.path} is an SQLite file but no ledger of steval batch; name another output directory"
            )
        age = "an older" if version < SCHEMA_VERSION else "a newer"
        raise ConfigError(
            f"{self.path} was written by {age} steval (ledger format {version}; this one has {SCHEMA_VERSION}). Finish the batch "
            "with that steval, or move the file away: results that are whole are found again by their job.json, as long as "
            "the versions that they depend on are the same"
        )

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        with self._saying():
            return self._database.execute(statement, values)

    @contextlib.contextmanager
    def _saying(self) -> Generator[None]:
        """Say what to do where the ledger can no longer be written."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BatchError(
                f"the ledger {self.path} cannot be used: {error}. Mend that (space, permissions) and run the same command again; "
                "what is done is kept"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:  # a full disk has rolled back already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def ledger_path(root: Path, shard: tuple[int, int] | None) -> Path:
    """The ledger of a batch, or of one shard of it."""
    return root / ("ledger.sqlite" if shard is None else f"ledger-{shard[0]}-of-{shard[1]}.sqlite")
