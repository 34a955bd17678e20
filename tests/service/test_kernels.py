"""Jobs get a copy of what is compiled; what they missed is compiled by a process that reads packaged cells alone."""

import os
import subprocess
import sys

import pytest

from steval.evaluator.metrics.profiles import PROFILES
from steval.service.jobs.files import KERNELS, TEMPORARY
from steval.service.score import kernels
from steval.service.score.kernels import JobKernels


class Started:
    """Stands for the processes that were started."""

    def __init__(self, commands):
        self.commands = commands

    def __call__(self, command, **_):
        self.commands.append(command)
        return self

    def kill(self):
        self.commands.append("killed")

    def wait(self):
        pass


@pytest.fixture
def commands(monkeypatch):
    found: list = []
    monkeypatch.setattr(kernels.subprocess, "Popen", Started(found))
    return found


def test_what_jobs_had_to_compile_is_compiled_once_a_profile_for_those_that_come(tmp_path, commands):
    own = JobKernels()
    own.give(tmp_path)
    own.take_note(tmp_path, "vcc")
    assert commands == []
    made = tmp_path / TEMPORARY / KERNELS / "rows_0"
    made.mkdir(parents=True)
    (made / "csr.py311.nbi").touch()
    for profile in ("vcc", "vcc", "full"):
        own.take_note(tmp_path, profile)
    assert commands == [[sys.executable, "-m", "steval.service.score.kernels", name] for name in ("vcc", "full")]
    own.stop()
    assert commands[2:] == ["killed", "killed"]


def test_a_profile_is_compiled_into_the_place_that_jobs_are_given(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "shared")}
    compiling = [sys.executable, "-m", "steval.service.score.kernels", "minimal"]
    subprocess.run(compiling, env=environment, check=True, cwd=tmp_path)
    program = (
        "import sys; from pathlib import Path; from steval.service.score.kernels import JobKernels;"
        "own = JobKernels(); own.give(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "job")], env=environment, check=True)
    given = {path.name for path in (tmp_path / "job" / TEMPORARY / KERNELS).rglob("*.nbc")}
    assert given
    assert given == {path.name for path in (tmp_path / "shared").rglob("*.nbc")}


@pytest.mark.parametrize("profile", ["minimal", "vcc2026"])
def test_profiles_of_every_scale_can_be_compiled(profile):
    kernels.compile_for(profile)


def test_every_scale_is_among_them():
    assert {PROFILES[name].scale for name in ("minimal", "vcc2026")} == {profile.scale for profile in PROFILES.values()}
