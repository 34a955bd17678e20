"""What is in a job's directory, and how an error is told."""

from pathlib import Path

from steval.batch.results import _sweep, one_line


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path):
    (tmp_path / ".score.1-ab.part").mkdir()
    (tmp_path / ".score.1-ab.part" / "results.csv").write_text("half")
    (tmp_path / ".preds.h5ad.1-ab.part").write_text("half")
    (tmp_path / "preds.h5ad").write_text("whole")
    _sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preds.h5ad"]


def test_a_message_of_several_lines_is_told_in_one():
    assert one_line("cannot be scored together\n  - no gene A\n  - no gene B") == (
        "cannot be scored together: no gene A; no gene B"
    )
    assert one_line("one line\n") == "one line"
    assert one_line("") == ""
