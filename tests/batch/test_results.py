from pathlib import Path

from steval.batch.results import _sweep


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path):
    (tmp_path / ".score.1-ab.part").mkdir()
    (tmp_path / ".score.1-ab.part" / "results.csv").write_text("half")
    (tmp_path / ".preds.h5ad.1-ab.part").write_text("half")
    (tmp_path / "preds.h5ad").write_text("whole")
    _sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preds.h5ad"]
