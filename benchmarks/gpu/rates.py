"""What the card does at best: matrix products in each precision, copies, and the disk; measured on random data."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from stage import Stage

PACKAGES = ("torch", "triton", "numpy", "pandas", "scipy", "numba", "anndata", "polars", "lightning", "h5py")


def run(stage: Stage) -> None:
    """Note versions, then rates in FLOP/s and B/s."""
    stage.note(python=platform.python_version(), versions={name: _version(name) for name in PACKAGES})
    stage.note(cores=len(os.sched_getaffinity(0)))
    if stage.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        stage.note(device=properties.name, memory_GB=round(properties.total_memory / 1e9, 1))
    for name, kind, tf32, size in [
        ("bf16", torch.bfloat16, False, stage.size(8192, 256)),
        ("tf32", torch.float32, True, stage.size(8192, 256)),
        ("fp32", torch.float32, False, stage.size(4096, 256)),
        ("fp64", torch.float64, False, stage.size(4096, 256)),
    ]:
        stage.note(**{f"{name}_FLOPs": _product_rate(stage, kind, tf32, size)})
    _copies(stage)
    _disk(stage)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _product_rate(stage: Stage, kind: torch.dtype, tf32: bool, size: int) -> float:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    left, right = (torch.randn(size, size, device=stage.device).to(kind) for _ in range(2))
    seconds = stage.seconds(lambda: left @ right, repeats=10)
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * size**3 / seconds


def _copies(stage: Stage) -> None:
    """Bytes moved a second: read and written on the device, and one way between it and pinned memory."""
    count = stage.size(1 << 28, 1 << 16)
    here, there = (torch.rand(count, device=stage.device) for _ in range(2))
    stage.note(device_copy_Bps=2 * 4 * count / stage.seconds(lambda: there.copy_(here)))
    host = torch.empty(count, pin_memory=stage.on_gpu)
    stage.note(to_host_Bps=4 * count / stage.seconds(lambda: host.copy_(here, non_blocking=True), 5))
    stage.note(to_device_Bps=4 * count / stage.seconds(lambda: here.copy_(host, non_blocking=True), 5))


def _disk(stage: Stage) -> None:
    """Writing of a new file, with and without waiting for the disk."""
    block = np.random.default_rng(0).bytes(stage.size(1 << 28, 1 << 16))
    path = stage.work / "disk"
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(4):
            file.write(block)
        written = time.perf_counter() - started
        file.flush()
        os.fsync(file.fileno())
    stage.note(write_Bps=4 * len(block) / written, write_synced_Bps=4 * len(block) / (time.perf_counter() - started))
    path.unlink()
