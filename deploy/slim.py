"""Run while an image is built: takes out of an environment what serves development alone, and says how much that was.

    python deploy/slim.py ENVIRONMENT

Packages' own tests, C and C++ headers, static libraries and Cython sources. Licence files stay.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = (
    "pandas",
    "scipy",
    "sklearn",
    "statsmodels",
    "matplotlib",
    "mpl_toolkits",
    "numba",
    "llvmlite",
    "pyarrow",
    "sympy",
    "networkx",
)
"""Packages whose folders `tests` are large and imported by nothing else."""
FOLDERS = ("torch/test", "torch/include", "pyarrow/include", "numpy/_core/include")
PROGRAMS = "torch/bin"
KEPT_PROGRAM = "torch_shm_manager"
"""Tensors that processes share are looked after by it."""
SUFFIXES = (".a", ".h", ".hpp", ".cuh", ".pxd", ".pyx")


def removable(packages: Path) -> Iterator[Path]:
    """Files and folders of `packages` (a site-packages) that no program needs."""
    for name in TESTS:
        yield from (path for path in (packages / name).rglob("tests") if path.is_dir())
    yield from (packages / name for name in FOLDERS if (packages / name).is_dir())
    yield from (path for path in packages.glob(f"{PROGRAMS}/*") if path.name != KEPT_PROGRAM)
    yield from (path for path in packages.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file() and not one.is_symlink())


def main(environment: Path) -> None:
    """Slim the environment."""
    removed = 0
    for packages in environment.glob("lib/python*/site-packages"):
        for path in list(removable(packages)):
            if not path.exists():  # inside a folder that has gone
                continue
            removed += size(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sys.stdout.write(f"{removed / 1e6:.0f} MB of tests, headers and build tools taken out\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
