"""Names of files and patterns; where output may be written."""

from pathlib import Path

import pytest

from steval.data.files import absolute_pattern, files_named, matching


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    directory = tmp_path / "lab [x] {a,b}*"
    directory.mkdir()
    for name in ("d[1].h5ad", "d1.h5ad", "e.h5ad"):
        (directory / name).touch()
    return directory


def test_a_name_that_exists_is_no_pattern(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matching(str(odd / "d[1].h5ad")) == [odd / "d[1].h5ad"]
    (odd / "d[1].h5ad").unlink()
    monkeypatch.chdir(odd)
    assert matching("d[1].h5ad") == [Path("d1.h5ad")]
    assert matching("none.h5ad") == []


def test_the_directory_of_a_pattern_is_none(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matching("d*", odd) == [odd / "d1.h5ad", odd / "d[1].h5ad"]
    assert matching("d[1].h5ad", odd) == [odd / "d[1].h5ad"]
    monkeypatch.chdir(odd)
    for pattern, number in (("d*.h5ad", 2), ("e.h5ad", 1), ("d[1].h5ad", 1), ("**/*.h5ad", 3)):
        assert len(matching(absolute_pattern(pattern))) == number, pattern


def test_a_file_is_found_by_its_name_alone(odd: Path) -> None:
    assert files_named("d[1].h5ad", [odd.parent]) == [odd / "d[1].h5ad"]
    assert files_named("d?.h5ad", [odd.parent]) == []
