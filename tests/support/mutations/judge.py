"""What has to hold however a command was called: codes, one message, inputs untouched, nothing half made, no secret."""

import hashlib
import os
import re
import stat
import warnings
from pathlib import Path

import h5py
import numpy as np

from tests.support.mutations.cases import Case
from tests.support.mutations.forking import Ended
from tests.support.mutations.surroundings import SECRET

CODES = {0, 2, 3, 4, 5}
_RAW = re.compile(
    r"Traceback|internal error|a bug in steval|^\S+\.py:\d+: |\w+Warning: |Segmentation|core dumped|object at 0x", re.M
)
"""What a person is never shown."""
MEMORY = 3 * 2**30
"""Bytes that no command on these inputs has a reason to hold: libraries take 0.7 GB."""
_ERROR = re.compile(r"^(?:error: |Error: |Error\b.*│?$|[╭+][─-] Error)", re.M)


def contents(place: Path) -> dict[str, str]:
    """Everything below `place`: kind, and digest or target."""
    found = {}
    for path in sorted(place.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            held = str(path.readlink())
        elif stat.S_ISREG(mode):
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held = ""
        found[str(path)] = f"{stat.S_IFMT(mode):o} {held}"
    return found


def problems_of(case: Case, ended: Ended, before: dict[str, str], place: Path, scratch: Path) -> list[str]:
    """Everything that should not be; empty where all is well."""
    if ended.hung:
        return ["it hung"]
    said = ended.stdout + ended.stderr
    problems = []
    if ended.code not in CODES:
        problems.append(f"exit code {ended.code}")
    if ended.memory > MEMORY:
        problems.append(f"held {ended.memory / 2**30:.1f} GiB")
    if found := _RAW.search(said):
        problems.append(f"shows {found[0]!r}")
    messages = len(_ERROR.findall(ended.stderr))
    heard = 2 not in case.started.closed and not case.started.largest_file
    if ended.code and messages != 1 and heard:
        problems.append(f"{messages} messages with exit code {ended.code}")
    if not ended.code and messages:
        problems.append("an error, and exit code 0")
    if not case.told and ended.code != case.line.code:
        problems.append(f"exit code {ended.code} for valid inputs")
    after = contents(place)
    written = [path for path in case.outputs if _is_new(path, before, after)]
    problems += _touched(case, ended, before, after)
    if ended.code and not (case.started.stdout or case.started.largest_file):  # a result that cannot be said is kept
        problems += [f"left {path.name!r} with exit code {ended.code}" for path in written]
    problems += [
        f"left {path!r} behind" for path in after.keys() - before.keys() if re.search(r"\.part$|\.lock$|\.tmp$", path)
    ]
    problems += [f"left {path.name} in the temporary directory" for path in scratch.iterdir()]
    if SECRET in said or any(SECRET in path.read_text("latin-1") for path in _files(written)):
        problems.append("shows a secret")
    if not ended.code:
        problems += [f"{path.name}: {reason}" for path in _files(written) if (reason := _unreadable(path))]
    return problems


def _is_new(path: Path, before: dict[str, str], after: dict[str, str]) -> bool:
    real = os.path.realpath(path)
    return any(
        (name == real or name.startswith(real + "/")) and before.get(name) != held for name, held in after.items()
    )


def _touched(case: Case, ended: Ended, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was there before and is not the same, but for an output that was replaced."""
    replaced = [os.path.realpath(path) for path in case.outputs if not ended.code]
    return [
        f"changed {name!r}"
        for name, held in before.items()
        if after.get(name) != held and not any(name == one or name.startswith(one + "/") for one in replaced)
    ]


def _files(paths: list[Path]) -> list[Path]:
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


def _unreadable(path: Path) -> str:
    """Why what was written as cells is none; empty where it is, or was not written as cells."""
    if path.suffix != ".h5ad":
        return "empty" if not path.stat().st_size else ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with h5py.File(path) as file:
            values = file["X/data" if isinstance(file["X"], h5py.Group) else "X"][()]
    return "" if np.isfinite(values).all() else "values that are not finite"
