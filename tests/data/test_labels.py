"""One rule for labels: what is missing, what is a name, and what happens to cells without one."""

import numpy as np
import pandas as pd
import pytest

from steval.data.labels import is_labelled, label_codes, labelled_rows, labels_of, labels_or, unique_labels
from steval.errors import DataError

MISSING = {
    "None": pd.Series(["a", None], dtype=object),
    "NaN": pd.Series(["a", np.nan], dtype=object),
    "NA": pd.Series(["a", pd.NA], dtype=object),
    "empty": pd.Series(["a", ""]),
    "blank": pd.Series(["a", " \t"]),
    "nullable text": pd.Series(["a", pd.NA], dtype="string"),
    "no category": pd.Series(pd.Categorical(["a", None])),
    "empty category": pd.Series(pd.Categorical(["a", ""])),
    "nullable integer": pd.Series([1, pd.NA], dtype="Int64"),
    "nullable boolean": pd.Series([True, pd.NA], dtype="boolean"),
    "float": pd.Series([1.5, np.nan]),
    "time": pd.Series([pd.Timestamp("2026-01-01"), pd.NaT]),
    "bytes": pd.Series([b"a", b""], dtype=object),
}


@pytest.mark.parametrize("values", MISSING.values(), ids=MISSING)
def test_what_is_missing_is_missing_in_every_form(values: pd.Series) -> None:
    obs = pd.DataFrame({"gene": values})
    assert is_labelled(values).tolist() == [True, False]
    assert len(unique_labels(values)) == 1
    with pytest.raises(DataError, match=r"f: 1 of 2 cells have no value in obs column 'gene'.*--drop-unlabelled"):
        labels_of(obs, "gene", "f")
    with pytest.raises(DataError, match="1 of 2 cells"):
        labelled_rows(obs, ["gene"], "f", drop=False)
    rows = labelled_rows(obs, ["gene"], "f", drop=True)
    assert rows is not None
    assert rows.tolist() == [0]


def test_names_that_readers_guess_at_are_names() -> None:
    names = ["nan", "NA", "None", "null", "0012", "1.10", "True", "<NA>", "-1"]
    obs = pd.DataFrame({"text": names, "category": pd.Categorical(names)})
    for column in obs:
        assert labels_of(obs, column, "f").tolist() == names
        assert labelled_rows(obs, [column], "f", drop=False) is None


def test_categories_of_one_text_are_one_name() -> None:
    names, codes = label_codes(pd.Categorical.from_codes([0, 1, 2, -1], categories=[1, "1", 1.0 + 1]))
    assert [names[code] for code in codes[:3]] == ["1", "1", "2.0"]
    assert codes[3] == -1


def test_a_column_that_is_not_there_is_one_label() -> None:
    obs = pd.DataFrame(index=["x", "y"])
    assert labels_or(obs, None, "all", "f").tolist() == ["all", "all"]


def test_all_columns_are_told_of_together() -> None:
    obs = pd.DataFrame({"gene": ["a", None, "b"], "type": [None, None, "t"]})
    with pytest.raises(DataError, match=r"1 of 3 cells (?s:.*)2 of 3 cells have no value in obs column 'type'"):
        labelled_rows(obs, ["gene", "type"], "f", drop=False)
    assert labelled_rows(obs, ["gene", "type"], "f", drop=True).tolist() == [2]
