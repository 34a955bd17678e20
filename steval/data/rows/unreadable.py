"""Damaged and unknown content of HDF5 files as errors of the data, wherever a reader meets it."""

from collections.abc import Generator
from contextlib import contextmanager

from anndata._io.specs.registry import IORegistryError  # of an unknown encoding; anndata has no public name for it

from steval.errors import DataError, StevalError

UNREADABLE = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, ImportError, AssertionError,
    MemoryError, IORegistryError,
)  # fmt: skip
"""What anndata and h5py raise on damaged or unknown content: h5py a `RuntimeError` of a link without end or an address outside the
file, numpy a `MemoryError` of a length that is none."""


@contextmanager
def reading(what: str) -> Generator[None]:
    """Within, content that cannot be read is a `DataError` that begins with `what`: the file, the part, what is wrong with it."""
    try:
        yield
    except StevalError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The start of an error's own text: HDF5's has many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
