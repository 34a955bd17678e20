"""What the machine's processors can do, where a choice of precision depends on it, and what to say when its memory is full."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache

import torch

from steval.errors import DeviceMemoryError

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names in `torch.cpu.get_capabilities()`: x86 and ARM."""
_MEMORY_IS_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of plain `RuntimeError`s: of the processors' allocator, of pinned memory, of a library's own workspace."""


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices by instructions of its own; a CPU without them takes several times
    as long as in float32."""
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name) is True for name in BF16_INSTRUCTIONS)


def slow_bf16_notice(setting: str) -> str:
    """What to tell a user whose `setting` asked for bfloat16 on such a CPU."""
    return (
        f"{setting}: this CPU has no bfloat16 instructions, so that products in bfloat16 are slower than in float32 "
        "(5 times, measured on such a machine) and no more exact; leave it at float32 here"
    )


@lru_cache
def has_fast_double(device: torch.device) -> bool:
    """Whether products in float64 cost about what they cost in float32: the data centre cards A100, H100, H200, B200."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0))


@contextmanager
def lowered_by(advice: Callable[[], str]) -> Generator[None]:
    """Within, memory that torch asks for and does not get is a `DeviceMemoryError` that ends in `advice`, what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _MEMORY_IS_FULL):
            raise
        raise DeviceMemoryError(f"the device ran out of memory. {advice()}") from error
