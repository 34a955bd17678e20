"""CSV tables hold no formula, and come back as they were."""

import csv

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from steval.evaluator.spreadsheet import read_csv, write_csv

LABELS = st.text(st.sampled_from("=+-@'\t\r\n a1,\"é"), max_size=6) | st.none()


@given(labels=st.lists(LABELS, min_size=1, max_size=8))
def test_labels_come_back_and_none_begins_a_formula(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    frame = pl.DataFrame(
        {"label": labels, "number": [-1.5] * len(labels), "gene": labels[::-1]},
        schema={"label": pl.String, "number": pl.Float64, "gene": pl.String},
    )
    write_csv(frame, path)
    assert read_csv(path, frame.schema).equals(frame, null_equal=True)
    with path.open(newline="") as handle:
        cells = [cell for row in list(csv.reader(handle))[1:] for cell in row[::2]]
    assert not [cell for cell in cells if cell[:1] in set("=+-@\t\r\n")]


def test_numbers_stay_numbers(tmp_path):
    frame = pl.DataFrame({"label": ["-1", "a"], "number": [-1.0, 2.0]})
    write_csv(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == ["label,number", "'-1,-1.0", "a,2.0"]
