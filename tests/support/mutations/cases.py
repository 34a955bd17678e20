"""One case: a command line with valid inputs, changed by what its number draws."""

import os
import random
import shutil
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from steval.data.rows.unreadable import UNREADABLE
from tests.support.mutations.cells import change_cells, change_hdf5
from tests.support.mutations.commands import LINES, Line, draw_line
from tests.support.mutations.files import (
    change_description,
    change_settings,
    change_text,
    damage,
    foreign,
    odd_name,
    special,
)  # fmt: skip
from tests.support.mutations.forking import Started
from tests.support.mutations.surroundings import odd_environment, odd_options


@dataclass
class Case:
    """A command that is to be run, and how it came about."""

    line: Line
    started: Started
    outputs: list[Path]
    told: list[str]
    """The changes, for a person."""
    inputs: dict[str, str] = field(default_factory=dict)


def make_case(number: int, valid: Path, place: Path, environment: dict[str, str], taken_port: int) -> Case:
    """The case of a number: inputs in `place` (a directory that is not there yet), changed.

    The same number gives the same case on the same libraries. Every twentieth case is a line as it stands.
    """
    rng = random.Random(number)
    as_it_stands = number % 20 == 0
    line = LINES[number // 20 % len(LINES)] if as_it_stands else draw_line(rng)
    place.mkdir()
    for name in sorted(
        {name.split("/")[0] for name in (*line.inputs, "genes.txt", "cells.h5ad", "config.yaml", "m.safetensors")}
    ):
        (shutil.copytree if (valid / name).is_dir() else shutil.copy2)(valid / name, place / name)
    names = {name: name for name in (*line.inputs, *line.outputs)}
    words = list(line.words)
    started = Started((), str(place), dict(environment))
    told: list[str] = []
    damaged: set[Path] = set()  # not to be read in this process: HDF5 does not come back from some
    for _ in range(0 if as_it_stands else rng.choice([1, 1, 1, 2, 2, 3])):
        change = rng.choices(
            ("content", "damage", "name", "output", "options", "environment", "streams"), (8, 3, 2, 2, 4, 2, 0.5)
        )[0]
        if change == "content" and line.inputs:
            path = place / names[rng.choice(line.inputs)]
            told.append("nothing" if path in damaged else _change_content(path, rng))
        elif change == "damage" and line.inputs:
            path = place / names[rng.choice(line.inputs)]
            damaged.add(path)
            way = special if not path.is_file() or path.is_symlink() else rng.choice([damage, damage, foreign, special])
            told.append(way(path, rng) if path.exists() else "nothing")
        elif change == "name" and line.inputs:
            told.append(_rename(place, names, rng.choice(line.inputs), rng))
        elif change == "output" and line.outputs:
            told.append(_odd_output(place, names, line, rng))
        elif change == "options":
            told.append(odd_options(words, rng))
        elif change == "environment":
            what, fresh = odd_environment(started.environment, rng)
            started = replace(started, fresh=started.fresh or fresh)
            told.append(what)
        elif change == "streams":
            started = replace(started, **rng.choice(_STREAMS))
            told.append(f"streams: {started.closed} {started.stdout} {started.largest_file}")
    arguments = tuple(
        str(taken_port) if word == "TAKEN" else names.get(word[1:], word) if word[:1] in "<>" else word
        for word in words
    )
    outputs = [place / names[name] for name in line.outputs]
    return Case(line, replace(started, arguments=arguments), outputs, told)


_STREAMS = (
    {"closed": (0,)}, {"closed": (1,)}, {"closed": (2,)}, {"closed": (0, 1, 2)}, {"stdout": "/dev/full"}, {"largest_file": 20_000},
    {"largest_file": 1},
)  # fmt: skip


def _change_content(path: Path, rng: random.Random) -> str:
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.is_file() and not one.is_symlink())
        path = rng.choice(inside) if inside else path
    if not path.is_file() or path.is_symlink():
        return "nothing"
    try:
        if path.suffix == ".h5ad":
            return (change_cells if rng.random() < 0.8 else change_hdf5)(path, rng)
        if path.suffix == ".safetensors":
            return change_description(path, rng)
        if path.suffix in (".yaml", ".yml") and rng.random() < 0.7:
            return change_settings(path, rng)
        if path.suffix in (".txt", ".csv", ".yaml", ".json"):
            return change_text(path, rng)
    except (*UNREADABLE, struct.error):  # changed before into what has no such parts
        return "nothing"
    return damage(path, rng)


def _rename(place: Path, names: dict[str, str], name: str, rng: random.Random) -> str:
    """An input under another name, which the command line says."""
    new = odd_name(Path(name).name, rng)
    old, path = place / names[name], place / new
    if name.split("/")[0] != name or not old.exists() or path.exists():
        return "nothing"
    if "/../" in new:
        (place / new.split("/../")[0]).mkdir(exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        old.rename(path)
    names[name] = rng.choice([new, str(path)]) if not new.startswith("-") else rng.choice([new, f"./{new}"])
    return f"{name} is called {names[name]!r}"


def _odd_output(place: Path, names: dict[str, str], line: Line, rng: random.Random) -> str:
    """An output under an odd name, or where something is already."""
    name = rng.choice(line.outputs)
    suffix = Path(name).suffix
    new = rng.choice(
        [
            odd_name(name, rng), odd_name(name, rng), f"deep/er/{name}", name.removesuffix(suffix), f"{name}.txt", "", ".",
            "..", "/", "/dev/null",
            "n" * 300 + suffix, f"genes.txt/{name}", "/proc/x" + suffix, *(names[one] for one in line.inputs),
            f"there{suffix}", f"here{suffix}",
            f"full{suffix}", "~/x" + suffix, f"pipe{suffix}",
        ]
    )  # fmt: skip
    if new == f"there{suffix}":
        (place / new).write_bytes(b"old")
    elif new == f"here{suffix}" and not (place / new).is_symlink():
        (place / new).symlink_to(rng.choice(["genes.txt", "nowhere", new, "/dev/full", *line.inputs]))
    elif new == f"full{suffix}":
        (place / new).mkdir(exist_ok=True)
        (place / new / "old").write_bytes(b"old")
    elif new == f"pipe{suffix}" and not (place / new).exists():
        os.mkfifo(place / new)
    names[name] = new
    return f"{name} goes to {new!r}"
