"""A checkpoint by its file or its run's directory; everything else is refused with what to do."""

from pathlib import Path

import pytest

from steval.checkpoints.location import is_arc, locate_checkpoint
from steval.errors import CheckpointError


def run_directory(place: Path, *names: str) -> Path:
    (place / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", *names):
        (place / name).write_bytes(b"")
    return place


def test_a_run_means_its_best_checkpoint(tmp_path):
    run = run_directory(tmp_path / "run [1]", "run.json", "checkpoints/last.ckpt", "checkpoints/best-val.safetensors")
    best = run / "checkpoints" / "best-val.safetensors"
    assert locate_checkpoint(run) == locate_checkpoint(run / "checkpoints") == locate_checkpoint(best) == best
    assert not is_arc(run) and is_arc(run / "checkpoints" / "last.ckpt")


def test_a_file_is_itself_there_or_not(tmp_path):
    assert locate_checkpoint(str(tmp_path / "absent.safetensors")) == tmp_path / "absent.safetensors"


def test_what_is_no_checkpoint_is_told_apart(tmp_path):
    stopped = run_directory(tmp_path / "stopped", "run.json", "checkpoints/last.ckpt")
    arc = run_directory(tmp_path / "arc", "checkpoints/final.ckpt")
    several = tmp_path / "several"
    several.mkdir()
    (several / "a.safetensors").write_bytes(b"")
    for place, answer in (
        (stopped, rf"no best checkpoint yet.*steval finetune --resume {stopped}"),
        (arc, rf"steval convert {arc} -o"),
        (arc / "checkpoints" / "final.ckpt", rf"steval convert {arc}/checkpoints/final.ckpt"),
        (several, r"it holds a\.safetensors"),
        (tmp_path, r"without checkpoints/best-val\.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=answer):
            locate_checkpoint(place)
