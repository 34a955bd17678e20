"""The tests marked `gpu`, as pytest runs them; warnings are no errors here, where packages may be newer than the pinned ones."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from stage import Stage

ROOT = Path(__file__).parents[2]
PROCESSES = 6
"""That share the GPU, where pytest-xdist is installed."""


def run(stage: Stage) -> None:
    """Note how many passed, and the names of those that did not, as they end; fine-tuning's come first."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    files.sort(key=lambda path: ("/trainer/" not in path, path))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rfE", "-W", "default", "-p", "no:cacheprovider"]
    command += ["--durations=15", "--tb=short", *(files[:1] if stage.small else files)]
    if importlib.util.find_spec("xdist") and not stage.small:
        command += ["-n", str(PROCESSES)]
    counts: dict[str, int] = {}
    not_passed: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            name, outcome = _outcome(line)
            if outcome is None:
                continue
            counts[outcome] = counts.get(outcome, 0) + 1
            not_passed += [f"{name} {outcome}"] if outcome in ("failed", "error") else []
            stage.note(**counts, not_passed=not_passed)
    stage.note(**counts, not_passed=not_passed)
    if process.returncode and not (process.returncode == 5 and not stage.on_gpu):
        raise SystemExit(f"pytest ended with {process.returncode}")


def _outcome(line: str) -> tuple[str, str | None]:
    """Name and outcome of a line of `pytest -v`, alone or with several processes."""
    found = re.match(
        r"(?:\[gw\d+\] \[ *\d+%\] (?P<first>[A-Z]+) )?(?P<name>tests/\S+::.*?)(?: (?P<last>[A-Z]+) .*)?$", line.rstrip()
    )
    if found is None:
        return "", None
    outcome = found["first"] or found["last"]
    return found["name"], None if outcome is None else outcome.lower()
