"""Names that would be misread are quoted, numbers are what plain digits say."""

import pytest

from steval.wording import listed, whole_number


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["A", "B c"], "A, B c"),
        (["A ", " A", "A  A", "", "a,b", "A\t"], r"'A ', ' A', 'A  A', '', 'a,b', 'A\t'"),
        ([], "(none)"),
        ([f"g{number}" for number in range(12)], "g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, … (12 in all)"),
        (["x" * 3000], "x" * 100 + "…"),
    ],
)
def test_names_can_be_told_apart(names, said):
    assert listed(names) == said


@pytest.mark.parametrize("text", ["", "²", "１２", "-1", "+1", "1_000", " 1", "0x10", "1e3", "9" * 19])
def test_other_texts_are_no_numbers(text):
    assert whole_number(text) is None


def test_plain_digits_are_numbers():
    assert [whole_number(text) for text in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]
