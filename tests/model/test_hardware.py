"""What is told of bfloat16 on processors that lack it."""

import pytest
import torch

from steval.model.hardware import has_native_bf16

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
