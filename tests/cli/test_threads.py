"""Processors are counted by affinity and control groups, and libraries are told before they are loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steval.machine import THREAD_VARIABLES, num_cores, processor_quota, thread_environment

V2 = {"proc/self/cgroup": "0::/jobs/17\n"}
V1 = {"proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/jobs/17\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({**V2, "sys/fs/cgroup/jobs/17/cpu.max": "150000 100000"}, 2, id="half a core is a core"),
        pytest.param({**V2, "sys/fs/cgroup/jobs/17/cpu.max": "max 100000"}, None, id="no limit"),
        pytest.param(
            {**V2, "sys/fs/cgroup/jobs/17/cpu.max": "max 100000", "sys/fs/cgroup/jobs/cpu.max": "300000 100000"},
            3, id="the group above has one",
        ),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4, id="in a container"),
        pytest.param({**V2, "sys/fs/cgroup/cpu.max": "20000 100000"}, 1, id="a fifth of a core is one thread"),
        pytest.param(
            {**V1, "sys/fs/cgroup/cpu,cpuacct/jobs/17/cpu.cfs_quota_us": "250000",
             "sys/fs/cgroup/cpu,cpuacct/jobs/17/cpu.cfs_period_us": "100000"},
            3, id="version 1",
        ),
        pytest.param(
            {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None, id="version 1 without limit",
        ),
        pytest.param({}, None, id="no control groups"),
        pytest.param({**V2, "sys/fs/cgroup/jobs/17/cpu.max": "odd"}, None, id="unreadable"),
    ],
)  # fmt: skip
def test_a_quota_is_found_where_the_kernel_says_it(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_quota(tmp_path) == expected


def test_threads_are_capped_where_there_is_less_time_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steval.machine._visible_cores", lambda: 16)
    monkeypatch.setattr("steval.machine.processor_quota", lambda: 4)
    assert num_cores() == 4
    added = thread_environment({"OMP_NUM_THREADS": "7"})
    assert {name: added.get(name) for name in THREAD_VARIABLES} == {
        **dict.fromkeys(THREAD_VARIABLES, "4"), "OMP_NUM_THREADS": None,
    }  # fmt: skip
    monkeypatch.setattr("steval.machine.processor_quota", lambda: 64)
    assert num_cores() == 16
    assert not set(thread_environment({})) & set(THREAD_VARIABLES)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [({}, True), ({"OMP_WAIT_POLICY": "PASSIVE"}, False), ({"GOMP_SPINCOUNT": "5"}, False)],
    ids=["nothing", "a policy", "a number of rounds"],
)
def test_idle_threads_sleep_soon_unless_the_user_decided(chosen: dict[str, str], kept: bool) -> None:
    added = thread_environment(chosen)
    gnu = {name: value for name, value in added.items() if name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    assert gnu == ({"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000"} if kept else {})
    assert ("KMP_BLOCKTIME" in added) is ("OMP_WAIT_POLICY" not in chosen)


def test_a_command_has_the_environment_before_torch_is_loaded() -> None:
    program = (
        "import sys, os, atexit\n"
        "from steval.cli import main\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules, file=sys.stderr))\n"
        "sys.argv = ['steval', '--version']\n"
        "main()\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.strip() == "5000 False"
