"""`steval inspect`: what is in a checkpoint, ours and arc-state's, without running or trusting any of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steval.checkpoints.conversion import ConversionOptions, convert_arc
from steval.checkpoints.inspection import inspect_checkpoint
from steval.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inspection") / "model.safetensors"
    convert_arc(GOLDEN / "arc_run", path, ConversionOptions(target_sum=10_000, licence="CC0-1.0"))
    return path


def test_our_file_is_described_whole(converted):
    found = inspect_checkpoint(converted, verify=True)
    stored = torch.load(GOLDEN / "arc_run/checkpoints/final.ckpt", weights_only=False)["state_dict"]
    total = sum(t.numel() for name, t in stored.items() if "embed_tokens" not in name)
    assert found["parameters"]["total"] == total == 343_357
    assert found["parameters"]["by_module"]["pert_encoder"] == 6 * 32 + 32 + 3 * (32 * 32 + 32)
    assert next(iter(found["parameters"]["by_module"])) == "final_down_then_up"
    assert found["verified"] is True
    assert (found["attention"], found["scale"], found["target_sum"]) == ("bidirectional", "lognorm", 10_000)
    assert found["licence"] == "CC0-1.0"
    assert found["genes"]["input"][:2] == ["CCNL2", "SSU72"]
    assert found["perturbations"]["control"] == "non-targeting"
    assert len(found["perturbations"]["trained"]) == 6
    assert found["training"]["step"] == 12


def test_the_run_directory_is_described_alike(converted):
    ours, arc = inspect_checkpoint(converted), inspect_checkpoint(GOLDEN / "arc_run")
    for key in ("attention", "model", "genes", "perturbations", "cell_types", "batches", "parameters"):
        assert ours[key] == arc[key]
    assert arc["format"] == "arc-state"
    assert arc["attention_recorded"] is True
    assert arc["unused_tensors"] == ["transformer_backbone.embed_tokens.weight"]
    assert inspect_checkpoint(GOLDEN / "regimes" / "keyless.ckpt")["attention_recorded"] is False


def test_our_file_is_described_without_torch(converted):
    code = (
        "import sys; from pathlib import Path; from steval.checkpoints.inspection import inspect_checkpoint as i; "
        f"i(Path({str(converted)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_verify_finds_a_changed_weight(converted, tmp_path):
    data = bytearray(converted.read_bytes())
    data[-5] ^= 1
    path = tmp_path / "changed.safetensors"
    path.write_bytes(data)
    assert inspect_checkpoint(path)["verified"] is False
    with pytest.raises(CheckpointError, match="digest"):
        inspect_checkpoint(path, verify=True)


@pytest.mark.parametrize("name", ["none.ckpt", "none.safetensors", "none"])
def test_a_missing_file_is_a_clear_error(tmp_path, name):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        inspect_checkpoint(tmp_path / name)
