"""numba compilation: once per machine, not once per process, wherever the package is installed.

numba keeps compiled code where NUMBA_CACHE_DIR says, else beside the module, else in the user's cache directory. Where
none can be written the kernels are compiled anew in each process, and a log line says so.
"""

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled without Python objects and without the interpreter lock; division follows numpy's rules."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:  # numba's answer where no cache directory can be written
        logger.info("compiling %s in this process only (%s); set NUMBA_CACHE_DIR to keep it", function, error)
        return numba.njit(nogil=True, error_model="numpy")(function)
