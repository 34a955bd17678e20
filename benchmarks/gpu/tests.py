"""The tests marked `gpu`, as pytest runs them; warnings are no errors here, where packages may be newer than the pinned ones."""

import re
import subprocess
import sys
from pathlib import Path

from stage import Stage

ROOT = Path(__file__).parents[2]


def run(stage: Stage) -> None:
    """Note how many passed, and the names of those that did not."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rfE", "-W", "default", "-p", "no:cacheprovider"]
    command += ["--durations=12", "--tb=short", *files]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    output = "".join(lines)
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    stage.note(**counts, not_passed=re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE))
    if process.returncode and not (process.returncode == 5 and not stage.on_gpu):
        raise SystemExit(f"pytest ended with {process.returncode}")
