"""The ledger: one holder for each job, dead holders lose it, other formats are refused."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from steval.batch.identity import RunnerIdentity, is_gone, own_identity
from steval.batch.ledger import APPLICATION_ID, SCHEMA_VERSION, Ledger
from steval.errors import BatchError, ConfigError, DataError

LEASE = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def elsewhere(name: str = "other") -> RunnerIdentity:
    """A runner of another machine, whose process cannot be looked at."""
    return RunnerIdentity(f"{name}/1/x", name, 1, "5")


def dead_process() -> RunnerIdentity:
    """A runner of this machine whose process has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return replace(own_identity(), id="dead", pid=child.pid)


def test_a_job_is_claimed_once_and_settled_once(path: Path):
    with Ledger(path) as ledger:
        us, them = own_identity(), elsewhere()
        ledger.join(us)
        ledger.join(them)
        assert ledger.claim("k", "job", us, LEASE, time.time()) == "claimed"
        assert ledger.claim("k", "job", them, LEASE, time.time()) == "held"
        assert not ledger.settle("k", them, None)
        assert ledger.settle("k", us, None)
        assert ledger.claim("k", "job", them, LEASE, time.time()) == "done"


def test_a_failed_job_is_tried_again_by_later_runs_only(path: Path):
    with Ledger(path) as ledger:
        us = own_identity()
        ledger.join(us)
        started = time.time()
        ledger.claim("k", "job", us, LEASE, started)
        ledger.settle("k", us, "broken")
        assert ledger.claim("k", "job", us, LEASE, started) == "failed"
        assert ledger.states(["k"])["k"].error == "broken"
        assert ledger.claim("k", "job", us, LEASE, time.time()) == "claimed"
        assert ledger.states(["k"])["k"].starts == 2


def test_what_a_dead_process_held_is_free_at_once(path: Path):
    with Ledger(path) as ledger:
        dead = dead_process()
        assert is_gone(dead)
        ledger.join(dead)
        ledger.claim("k", "job", dead, LEASE, time.time())
        us = own_identity()
        ledger.join(us)
        assert ledger.claim("k", "job", us, LEASE, time.time()) == "claimed"


def test_a_process_number_used_again_is_not_the_same_runner():
    assert not is_gone(own_identity())
    assert is_gone(replace(own_identity(), born="1"))
    assert not is_gone(elsewhere())


def test_another_machine_is_dead_after_its_lease(path: Path):
    with Ledger(path) as ledger:
        them, us = elsewhere(), own_identity()
        ledger.join(them)
        ledger.join(us)
        ledger.claim("k", "job", them, LEASE, time.time())
        time.sleep(0.05)
        assert ledger.claim("k", "job", us, 10.0, time.time()) == "held"
        ledger.beat(them)
        assert ledger.claim("k", "job", us, 0.04, time.time()) == "held"
        time.sleep(0.06)
        assert ledger.claim("k", "job", us, 0.04, time.time()) == "claimed"
        assert not ledger.settle("k", them, None)


def test_leaving_frees_what_is_held(path: Path):
    with Ledger(path) as ledger:
        us = own_identity()
        ledger.join(us)
        ledger.claim("k", "job", us, LEASE, time.time())
        ledger.leave(us)
        assert ledger.states(["k"])["k"].state == "free"


def test_many_runners_at_once_share_the_jobs_without_doubles(path: Path):
    Ledger(path).close()
    taken: list[str] = []

    def take(number: int) -> None:
        with Ledger(path) as ledger:
            runner = replace(own_identity(), id=f"runner{number}")
            ledger.join(runner)
            for key in range(40):
                if ledger.claim(f"k{key}", "job", runner, LEASE, 0.0) == "claimed":
                    taken.append(f"k{key}")

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"k{key}" for key in range(40))


def test_the_disk_has_the_last_word(path: Path):
    with Ledger(path) as ledger:
        us = own_identity()
        ledger.join(us)
        ledger.note("found", "job", True)
        assert ledger.claim("found", "job", us, LEASE, time.time()) == "done"
        ledger.note("found", "job", False)
        assert ledger.claim("found", "job", us, LEASE, time.time()) == "claimed"


@pytest.mark.parametrize(("version", "word"), [(SCHEMA_VERSION - 1, "an older"), (SCHEMA_VERSION + 1, "a newer")])
def test_another_format_is_refused_with_what_to_do(path: Path, version: int, word: str):
    with Ledger(path):
        pass
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(ConfigError, match=f"was written by {word} steval .*Finish the batch"):
        Ledger(path)


def test_other_files_are_no_ledgers(path: Path):
    path.write_bytes(b"not a database, but long enough to look like one" * 10)
    with pytest.raises(ConfigError, match="is not a ledger"):
        Ledger(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE other (x)")
    database.close()
    with pytest.raises(ConfigError, match="no ledger of steval batch"):
        Ledger(path)


def test_a_ledger_that_cannot_be_made_or_written_says_so(path: Path):
    path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot open or make the ledger .*must be writable and have space"):
        Ledger(path)
    path.rmdir()
    with Ledger(path) as ledger:
        us = own_identity()
        ledger.join(us)
        ledger._database.execute("PRAGMA max_page_count = 1")  # SQLite's own full disk: no page more than there are
        with pytest.raises(BatchError, match=r"cannot be used: database or disk is full.*what is done is kept"):
            for number in range(1000):
                ledger.claim(f"k{number}", "a long name " * 100, us, LEASE, time.time())
        ledger._database.execute("PRAGMA max_page_count = 100000")
        assert ledger.claim("later", "job", us, LEASE, time.time()) == "claimed"


def test_the_ledger_writes_ahead(path: Path):
    with Ledger(path):
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        database.close()


def test_digests_are_kept_until_the_file_changes(path: Path, tmp_path: Path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    with Ledger(path) as ledger:
        first = ledger.stamp(str(file), tmp_path)
        status = file.stat()
        file.write_bytes(b"two")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert ledger.stamp(str(file), tmp_path) == first
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert ledger.stamp(str(file), tmp_path).sha256 != first.sha256
        with pytest.raises(DataError, match="no such file"):
            ledger.stamp(str(tmp_path / "none"), tmp_path)
