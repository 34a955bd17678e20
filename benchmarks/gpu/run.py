"""Measures steval on one GPU: stage after stage, each a process with a time limit, results as JSON, a table at the end.

    bash benchmarks/gpu/run.sh --out DIR [--budget 420] [--stages rates,tests] [--work DIR]
    bash benchmarks/gpu/run.sh --out DIR --device cpu --small        (proves the script itself; with --together in seconds)

All data are drawn at random on the machine, in the shape of a screen: 18,080 genes, a tenth of them expressed. Stages, in the
order of their worth: `rates` (what the card can do: products, copies, disk), `tests` (pytest -m gpu), `finetune` (steps of the
trainer with arc-state's `state_sm` network, each variant a process of its own, and a plain loop of the same arithmetic beside
them), `commands` (`steval finetune`, `predict` and `score`), `ranks` (differential expression and energy distances of a
screen), `predict` (a whole screen to nowhere and to h5ad). Each stage compares its results with the processors'.
DIR gets results.json, stages.log and profile.txt. `--budget` bounds the whole: what no longer fits is left out and named.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import table
from stage import Stage

LIMITS = {"rates": 45, "tests": 100, "finetune": 130, "commands": 95, "ranks": 45, "predict": 100}
"""Stages in their order, and the most seconds of each."""
SHORTEST = 8
"""A stage that would have fewer seconds is left out."""


def main() -> int:
    options = _options()
    if options.only:
        _run_alone(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "stages.log", "profile.txt"):
        (options.out / name).unlink(missing_ok=True)
    results: dict[str, Any] = {"command": sys.argv, "device": options.device, "small": options.small, "stages": {}}
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        work = Path(directory)
        if options.together:
            _run_here(options, "make", work)
        making = None if options.together else _start(options, "make", work)
        try:
            for name in options.stages.split(","):
                results["stages"][name] = _run(options, name, work, end)
                (options.out / "results.json").write_text(json.dumps(results, indent=1))
                print(f"{name}: {results['stages'][name]['status']}", flush=True)
        finally:
            if making is not None:
                _stop(making)
    print(table.render(results))
    return 0 if all(stage["status"] == "done" for stage in results["stages"].values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to prove the script")
    parser.add_argument("--stages", default=",".join(LIMITS))
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for everything")
    parser.add_argument("--work", type=Path, help="directory for scratch files, several GB (default: the system's)")
    parser.add_argument("--together", action="store_true", help="all stages in one process, without limits")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.stages.split(",")) - set(LIMITS)
    if unknown:
        parser.error(f"no such stages: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    return options


def _run_alone(options: argparse.Namespace) -> None:
    """One stage in this process."""
    _run_here(options, options.only, options.work)


def _run_here(options: argparse.Namespace, name: str, work: Path) -> None:
    stage = Stage(name, options.device, options.small, work, options.out, options.variant, together=options.together)
    importlib.import_module(name).run(stage)


def _run(options: argparse.Namespace, name: str, work: Path, end: float) -> dict[str, Any]:
    """A stage in a process of its own, ended at its limit; what it noted until then is kept."""
    seconds = min(LIMITS[name], end - time.monotonic())
    if seconds < SHORTEST:
        return {"status": "left out: the budget was spent", "results": {}}
    started = time.monotonic()
    status = "done"
    if options.together:
        _run_here(options, name, work)
    else:
        status = _run_apart(options, name, work, seconds)
    noted = Stage.notes_path(work, name)
    found = json.loads(noted.read_text()) if noted.exists() else {}
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "results": found}


def _run_apart(options: argparse.Namespace, name: str, work: Path, seconds: float) -> str:
    """How a stage in a process of its own ended."""
    process = _start(options, name, work)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return f"ended at its limit of {seconds:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code} (stages.log says why)"


def _start(options: argparse.Namespace, name: str, work: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "--only", name, "--device", options.device, "--work", str(work)]
    command += ["--out", str(options.out), *(["--small"] if options.small else [])]
    with (options.out / "stages.log").open("ab") as log:
        log.write(f"\n== {name}\n".encode())
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
