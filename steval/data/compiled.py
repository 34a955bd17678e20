"""numba compilation: once per machine, not once per process, wherever the package is installed.

numba keeps compiled code where NUMBA_CACHE_DIR says, else beside the module, else in the user's cache directory. What cannot
be kept or read there (no such directory, another user's files, a full disk) is compiled anew, and a log line says so.
"""

import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled without Python objects and without the interpreter lock; division follows numpy's rules."""
    kernel: Any = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        kernel._cache = _Kept(function)
    except RuntimeError as error:  # numba's answer where no cache directory can be written
        _say(function, error)
    return kernel


def copy_kernels(package: Path, into: Path) -> int:
    """Copy what numba has compiled of the modules below `package` to where it looks with NUMBA_CACHE_DIR=`into`.

    Returns the number of files copied; zero where nothing was compiled yet.
    """
    copied = 0
    for directory in sorted({path.parent for path in package.rglob("*.py")}):
        own = caching.UserProvidedCacheLocator.get_suitable_cache_subpath(str(directory / "module.py"))
        kept = next((place for place in _places(directory, own) if any(place.glob("*.nbi"))), None)
        if kept is not None:
            (into / own).mkdir(parents=True, exist_ok=True)
            for path in kept.glob("*.nb[ic]"):
                shutil.copy(path, into / own)
                copied += 1
    return copied


def _places(directory: Path, own: str) -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen, own)
        return
    yield directory / "__pycache__"
    yield Path(caching.AppDirs(appname="numba", appauthor=False).user_cache_dir, own)


class _Kept(caching.FunctionCache):
    """numba's cache of a function; a file that cannot be read or written costs a compilation, never the command."""

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            _say(self._py_func, error)


def _say(function: Callable[..., Any], error: Exception) -> None:
    logger.info("compiling %s in this process only (%s); set NUMBA_CACHE_DIR to keep it", function, error)
