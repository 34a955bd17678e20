"""Paths, globs, URLs and names."""

import time
from pathlib import Path

import pytest

from steval.batch.places import find, local_copy, plain_name, unique_names
from steval.errors import ConfigError, DataError


def test_globs_are_sorted_and_relative_to_the_manifest(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "m.safetensors").touch()
    assert find("runs/*/m.safetensors", tmp_path) == [str(tmp_path / f"runs/{name}/m.safetensors") for name in "ab"]
    assert find("runs/c/*.safetensors", tmp_path) == []
    (tmp_path / "odd[1].h5ad").touch()
    assert find("odd[1].h5ad", tmp_path) == [str(tmp_path / "odd[1].h5ad")]
    assert find("no-glob.h5ad", tmp_path) == [str(tmp_path / "no-glob.h5ad")]


def test_names_are_as_short_as_tells_them_apart():
    assert unique_names(["/x/one.h5ad", "/x/two.h5ad"]) == ["one", "two"]
    runs = [f"/runs/{name}/checkpoints/best-val.safetensors" for name in "ab"]
    assert unique_names(runs) == ["a-checkpoints-best-val", "b-checkpoints-best-val"]
    assert plain_name("a b/c: 5 µM") == "a-b-c-5-M"


def test_a_url_is_copied_once_and_again_when_it_changed(tmp_path: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/x.h5ad", b"one")
    first = local_copy("memory://bucket/x.h5ad", tmp_path)
    assert first.read_bytes() == b"one"
    assert first.name == "x.h5ad"
    written = first.stat().st_mtime_ns
    assert local_copy("memory://bucket/x.h5ad", tmp_path) == first
    assert first.stat().st_mtime_ns == written
    time.sleep(0.01)
    memory.pipe("/bucket/x.h5ad", b"two!")
    second = local_copy("memory://bucket/x.h5ad", tmp_path)
    assert second.read_bytes() == b"two!"
    assert find("memory://bucket/*.h5ad", tmp_path) == ["memory:///bucket/x.h5ad"]


def test_what_cannot_be_had_is_said(tmp_path: Path):
    with pytest.raises(DataError, match="no such file: memory"):
        local_copy("memory://bucket/none.h5ad", tmp_path)
    with pytest.raises(ConfigError, match="cannot open nonsense"):
        local_copy("nonsense://x", tmp_path)
