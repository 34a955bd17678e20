"""Odd surroundings of a command: its options, its environment, its streams and its working directory."""

import random
from functools import cache

import typer

from steval.cli.app import app
from steval.settings import flatten
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import config_path

SECRET = "stv_7Kd0eZq1"
"""Part of every key and password in the environment; nothing that a command prints or writes may hold it."""
ODD_VALUES = (
    "", " ", "0", "-1", "1", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30, "-" + "9" * 30, "0x10", "1_000", "１２", "1.5",
    "true",
    "null", "[", "{}", "a=b", "a,b,,c", ",", ":", "1:0", "nan:1", "/", ".", "..", "/dev/null", "/dev/stdin", "-", "--", "~", "*",
    "é", "\udcff", "\u202e", "\x1b[31m", "x" * 5000, "../../x", "é" * 300, "%s{0}", "'", '"', "$HOME", "cuda:99", "auto", "all",
    "2147483648", "100000", "4096", "1000000", "16777216", "1000000000000", "cells.h5ad", "m.safetensors", "genes.txt",
    "run", "counts", "lognorm", "batch", "STAT1", "http://[::1",
)  # fmt: skip
"""Values for any option."""
ODD_NUMBERS = (
    "0", "-1", "1", "0.5", "3", "100", "65536", "1000000", "16777216", "1000000000000", "9" * 30, "1e300", "nan", "null", "x",
)  # fmt: skip
"""Values for any number of a configuration."""
LEFT_OUT = {
    "--help", "--compile", "--engine", "--address", "--install-completion", "--show-completion", "--debug", "--new-key",
    "--no-auth", "--synthetic",
    "--out", "--run"}  # fmt: skip
"""Not drawn: what compiles for minutes, starts a cluster, shows tracebacks, or would let a service begin to serve; outputs
are changed elsewhere."""


@cache
def options_of(command: str) -> tuple[tuple[str, bool], ...]:
    """The long names of a command's options, and whether each is a switch."""
    found = typer.main.get_command(app).commands[command]
    return tuple(
        (name, bool(getattr(parameter, "is_flag", False)))
        for parameter in found.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--") and name not in LEFT_OUT
    )


@cache
def settings() -> tuple[str, ...]:
    """Every number of a configuration, as `--set` names it."""
    resolved = FinetuneConfig.load(config_path("quick-cpu")).as_dict()
    return tuple(name for name, value in flatten(resolved).items() if isinstance(value, int | float | None))


def odd_options(words: list[str], rng: random.Random) -> str:
    """An option more, or another value of one that is there."""
    name, is_switch = rng.choice(options_of(words[0]))
    value = f"{rng.choice(settings())}={rng.choice(ODD_NUMBERS)}" if name == "--set" else rng.choice(ODD_VALUES)
    if rng.random() < 0.1:
        words.append(rng.choice(["--no-such-option", value, f"{name}=", f"{name}x", "-é"]))
    elif is_switch:
        words.append(name)
    elif name == "--port":
        return "nothing"
    else:
        words += [f"{name}={value}"] if rng.random() < 0.5 else [name, value]
    return f"options: {words[-2:]!r}"[:200]


ENVIRONMENTS: tuple[dict[str, str | None], ...] = (
    {"MPLBACKEND": "module://no.such.backend"}, {"MPLBACKEND": "TkAgg"}, {"COLUMNS": "0"}, {"COLUMNS": "-5"},
    {"COLUMNS": "abc"}, {"COLUMNS": "1"},
    {"COLUMNS": "9" * 20}, {"COLUMNS": "²"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONUTF8": "0", "LC_ALL": "C"},
    {"LC_ALL": "tr_TR.UTF-8"}, {"LC_ALL": "xx", "LANG": "yy"}, {"TMPDIR": "/nowhere"}, {"TMPDIR": "genes.txt"}, {"TMPDIR": ""},
    {"TMPDIR": "/proc"},
    {"HOME": None}, {"HOME": "/nowhere"}, {"HOME": "genes.txt"}, {"HOME": "/proc", "XDG_CACHE_HOME": "/proc"},
    {"XDG_CACHE_HOME": "genes.txt"},
    {"ALL_PROXY": f"socks5://me:{SECRET}@127.0.0.1:9"}, {"HTTP_PROXY": f"http://me:{SECRET}@127.0.0.1:9"}, {"http_proxy": f"ftp://{SECRET}@x"},
    {"HTTPS_PROXY": f"http://[{SECRET}", "NO_PROXY": "[::1],::/0,*"}, {"NO_PROXY": "::1,[fe80::1]:80,.x,,"},
    {"STEVAL_API_KEY": f"{SECRET}\n"},
    {"STEVAL_API_KEY": f"{SECRET}é"}, {"STEVAL_API_KEY": f"{SECRET}\x01"}, {"STEVAL_API_KEY": ""},
    {"STEVAL_CACHE_DIR": "/nowhere/x"},
    {"STEVAL_CACHE_DIR": "genes.txt"}, {"STEVAL_CACHE_DIR": "/proc"}, {"STEVAL_CACHE_DIR": ""}, {"STEVAL_DATA_DIR": "/nowhere"},
    {"STEVAL_DATA_DIR": ""}, {"STEVAL_DATA_DIR": "a:b:/etc"}, {"STEVAL_DATA_DIR": "cells.h5ad"}, {"STEVAL_MAX_CELLS": "-1"},
    {"STEVAL_MAX_CELLS": "1e400", "STEVAL_WORKERS": "nan"}, {"STEVAL_NO_AUTH": "perhaps"}, {"STEVAL_CHECKPOINT": "/nowhere"},
    {"STEVAL_QUEUE_TIMEOUT": "inf"}, {"STEVAL_API_KEY_FILE": "/nowhere"}, {"STEVAL_DEVICE": "cuda:7"}, {"OMP_NUM_THREADS": "0"},
    {"OMP_NUM_THREADS": "abc"}, {"OMP_NUM_THREADS": "-3"}, {"NUMBA_NUM_THREADS": "abc"}, {"NUMBA_NUM_THREADS": "0"},
    {"POLARS_MAX_THREADS": "0"},
    {"POLARS_MAX_THREADS": "x"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONOPTIMIZE": "2"},
    {"PYTHONHASHSEED": "7"},
    {"PYTHONDONTWRITEBYTECODE": "1"}, {"NUMBA_CACHE_DIR": "/proc"}, {"NUMBA_CACHE_DIR": "genes.txt"}, {"MPLCONFIGDIR": "/proc"},
    {"HDF5_USE_FILE_LOCKING": "FALSE"}, {"HDF5_PLUGIN_PATH": "/nowhere"}, {"CUDA_VISIBLE_DEVICES": ""}, {"TZ": "No/Where"},
    {"PATH": ""}, {"PATH": None},
    {"USER": None, "LOGNAME": None}, {"PYTHONUNBUFFERED": "1"}, {"_TYPER_STANDARD_TRACEBACK": "1"}, {"TYPER_USE_RICH": "0"},
)  # fmt: skip
"""Each added to an environment that works; None takes a variable away."""
FRESH = {
    "MPLBACKEND", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS",
    "PYTHONOPTIMIZE",
    "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "HDF5_PLUGIN_PATH",
}  # fmt: skip
"""Heeded where libraries are imported: such a command runs in a fresh process."""


def odd_environment(environment: dict[str, str], rng: random.Random) -> tuple[str, bool]:
    """Change it; returns what was done, and whether a fresh process is needed."""
    change = rng.choice(ENVIRONMENTS)
    for name, value in change.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return f"environment: {change!r}", bool(FRESH & set(change))
