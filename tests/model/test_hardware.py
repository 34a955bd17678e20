"""What is told of bfloat16 on processors that lack it, and where memory is full."""

import pytest
import torch

from steval.errors import DeviceMemoryError
from steval.model.hardware import has_native_bf16, lowered_by

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "native"),
    [
        pytest.param({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False, id="AVX2 alone"),
        pytest.param({"avx512_f": True, "avx512_bf16": True}, True, id="AVX-512 BF16"),
        pytest.param({"amx_bf16": True, "avx512_bf16": False}, True, id="AMX"),
        pytest.param({"bf16": True}, True, id="ARM"),
        pytest.param({"cpu_name": "bf16"}, False, id="a name is no instruction"),
    ],
)
def test_follows_the_instructions_of_the_cpu(monkeypatch, found, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert has_native_bf16(CPU) is native


def test_asks_cpus_alone():
    assert has_native_bf16(torch.device("cuda"))


def _allocate() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def _no_room() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _no_room_for_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("work", [_allocate, _no_room, _no_room_for_cublas])
def test_memory_that_is_full_says_what_to_lower(work):
    with (
        pytest.raises(DeviceMemoryError, match=r"^the device ran out of memory\. Lower this$") as caught,
        lowered_by(lambda: "Lower this"),
    ):
        work()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="cannot be multiplied"), lowered_by(lambda: "Lower this"):
        torch.ones(2, 3) @ torch.ones(2, 3)
