"""malloc's options are set where they can be, and the caller's own are left alone."""

import gc
import platform
import subprocess
import sys

import pytest

from steval.cli.memory import importing

FAULTS = """
import resource, sys
import numpy as np
from steval.cli.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
np.ones(20_000_000, dtype=np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(20_000_000, dtype=np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc's malloc")
def test_large_arrays_are_used_again(monkeypatch):
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")  # a huge page would be one fault for 512
    mapped_anew = page_faults("as it is")
    assert mapped_anew > 100_000  # ten arrays of 80 MB in pages of 4 kB
    assert page_faults("kept") < mapped_anew / 100


def test_the_callers_own_options_are_left_alone(monkeypatch):
    from steval.cli.memory import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


def test_nothing_is_collected_while_importing():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()  # the caller's own choice stays
    finally:
        gc.enable()


def test_a_command_ends_without_a_last_collection():
    program = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 1000, file=sys.stderr))  # runs last\n"
        "from steval.cli import main\n"
        "sys.argv = ['steval', '--version']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("steval ") and done.stderr == "frozen True\n"
