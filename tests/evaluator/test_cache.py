"""The cache never serves a wrong value: changed data misses, damage heals, processes share, a full disk does no harm."""

import logging
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.evaluation import evaluate
from support.engine_screens import screen

ALL = ["mae", "pearson_edistance", "overlap_at_N", "roc_auc"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cells")
    real, pred = screen(num_perturbations=4, num_genes=100)
    for name, side in (("real", real), ("pred", pred)):
        side.write_h5ad(directory / f"{name}.h5ad")
    return directory


def scored(files, cache, metrics="vcc", columns=None, **arguments):
    with Pair.build(files / "pred.h5ad", files / "real.h5ad", columns or Columns()) as pair:
        return evaluate(pair, metrics, cache=cache, **arguments)


def came_from_cache(evaluation):
    return "the real side came from the cache" in evaluation.notes


def entries(cache):
    return sorted(cache.glob("*.safetensors"))


def test_second_run_reads_the_cache_and_has_the_same_values(files, tmp_path):
    first, second = scored(files, tmp_path, ALL), scored(files, tmp_path, ALL)
    assert not came_from_cache(first)
    assert came_from_cache(second)
    assert second.results.equals(first.results, null_equal=True)
    assert second.de_real.equals(first.de_real)
    np.testing.assert_array_equal(second.pseudobulk_real.values, first.pseudobulk_real.values)
    assert first.results.equals(scored(files, None, ALL).results, null_equal=True)


def test_less_is_found_in_more_but_not_more_in_less(files, tmp_path):
    scored(files, tmp_path, "pds")
    assert not came_from_cache(scored(files, tmp_path, "vcc"))
    assert came_from_cache(scored(files, tmp_path, ["mae"]))
    assert len(entries(tmp_path)) == 2
    assert not came_from_cache(scored(files, tmp_path, "vcc", epsilon=1e-3))


def test_a_changed_value_misses(files, tmp_path):
    before = scored(files, tmp_path, ["mae_delta"])
    copy = tmp_path / "changed"
    copy.mkdir()
    for name in ("pred", "real"):
        (copy / f"{name}.h5ad").write_bytes((files / f"{name}.h5ad").read_bytes())
    real = screen(num_perturbations=4, num_genes=100)[0]
    real.X.data[5] += 0.5
    real.write_h5ad(copy / "real.h5ad")
    after = scored(copy, tmp_path, ["mae_delta"])
    assert not came_from_cache(after)
    assert not after.results.equals(before.results)
    assert came_from_cache(scored(copy, tmp_path, ["mae_delta"]))


def test_other_controls_or_cell_types_are_other_entries(files, tmp_path):
    scored(files, tmp_path, ["mae_delta"])
    other = Columns(control="drug0")
    assert not came_from_cache(scored(files, tmp_path, ["mae_delta"], columns=other))
    with Pair.build(files / "pred.h5ad", files / "real.h5ad", Columns()) as pair:
        part = pair.by_cell_type()["type0"]
        assert not came_from_cache(evaluate(part, ["mae_delta"], cache=tmp_path))


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "empty", "other text"])
def test_damage_is_noticed_and_healed(files, tmp_path, damage, caplog):
    expected = scored(files, tmp_path).results
    (entry,) = entries(tmp_path)
    content = bytearray(entry.read_bytes())
    if damage == "flipped byte":
        content[len(content) // 2] ^= 1
    entry.write_bytes(
        {"cut short": content[:-7], "empty": b"", "other text": b"not a cache entry"}.get(damage, content)
    )
    with caplog.at_level(logging.WARNING):
        healed = scored(files, tmp_path)
    assert not came_from_cache(healed)
    assert "is damaged" in caplog.text
    assert healed.results.equals(expected)
    assert came_from_cache(scored(files, tmp_path))


def test_every_byte_of_the_numbers_is_guarded(files, tmp_path):
    expected = scored(files, tmp_path).results
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 12):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        entry.write_bytes(damaged)
        assert scored(files, tmp_path).results.equals(expected)


def test_a_cache_that_cannot_be_written_changes_nothing(files, tmp_path, caplog):
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        evaluation = scored(files, blocked / "cache")
    assert "could not be written" in caplog.text
    assert evaluation.results.equals(scored(files, None).results)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_entry_that_cannot_be_read_stays_and_is_no_damage(files, tmp_path, caplog, monkeypatch, error):
    expected = scored(files, tmp_path).results
    (entry,) = entries(tmp_path)
    opened = Path.open

    def refuses(path, mode="r", **given):
        if path == entry and mode == "rb":
            raise error
        return opened(path, mode, **given)

    monkeypatch.setattr(Path, "open", refuses)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("another user's entry was removed"))
    monkeypatch.setattr("steval.evaluator.measure.cache.store_tables", lambda *_: None)
    with caplog.at_level(logging.INFO):
        again = scored(files, tmp_path)
    assert again.results.equals(expected)
    assert not came_from_cache(again)
    assert "damaged" not in caplog.text
    assert error.strerror in caplog.text


def test_damage_that_cannot_be_removed_changes_nothing(files, tmp_path, monkeypatch):
    expected = scored(files, tmp_path).results
    (entry,) = entries(tmp_path)
    entry.write_bytes(b"not a cache entry")

    def refuses(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuses)
    monkeypatch.setattr(Path, "replace", refuses)
    monkeypatch.setattr("steval.data.files.atomic_path", refuses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steval.evaluator.measure.cache.atomic_tensors", refuses)
        assert scored(files, tmp_path).results.equals(expected)


def test_a_full_cache_disk_changes_nothing(files, tmp_path, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            evaluation = scored(files, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written" in caplog.text
    assert evaluation.results.equals(scored(files, None).results)
    assert not list((tmp_path / "cache").iterdir())


def test_entries_can_be_read_by_those_whom_the_umask_lets(files, tmp_path):
    (tmp_path / "plain").touch()
    scored(files, tmp_path)
    (entry,) = entries(tmp_path)
    assert entry.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_processes_share_a_directory(files, tmp_path):
    program = (
        "import sys; from pathlib import Path; from steval.evaluator import Pair, evaluate\n"
        "pred, real, cache = sys.argv[1:]\n"
        "with Pair.build(pred, real) as pair:\n"
        "    sys.stdout.write(evaluate(pair, 'vcc', cache=Path(cache)).results.write_csv())\n"
    )
    command = [sys.executable, "-c", program, str(files / "pred.h5ad"), str(files / "real.h5ad"), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".*.part"))
    assert came_from_cache(scored(files, tmp_path))


def test_cells_in_memory_are_cached_by_content(tmp_path):
    real, pred = screen(num_perturbations=4, num_genes=100)
    for expected in (False, True):
        with Pair.build(pred, real, Columns()) as pair:
            assert came_from_cache(evaluate(pair, ["mae"], cache=tmp_path)) is expected
    real.X = real.X.copy()
    real.X.data[0] += 0.25
    with Pair.build(pred, real, Columns()) as pair:
        assert not came_from_cache(evaluate(pair, ["mae"], cache=tmp_path))
