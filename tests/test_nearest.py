"""Suggestions are those of `difflib` over all names, and few names are compared with it."""

from difflib import SequenceMatcher, get_close_matches

import numpy as np
import pytest

from steval.errors import MOST_SUGGESTED, UnknownPerturbationError
from steval.nearest import Names, nearest_names

LETTERS = list("AbCdÉß12-")


def by_difflib(name: str, known: list[str], limit: int) -> list[str]:
    folded = {candidate.casefold(): candidate for candidate in reversed(known)}
    return [folded[match] for match in get_close_matches(name.casefold(), list(folded), n=limit, cutoff=0.5)]


@pytest.mark.parametrize("num_names", [0, 1, 30, 65, 400])
def test_suggestions_are_those_of_difflib(num_names):
    rng = np.random.default_rng(num_names)
    for _ in range(40):
        known = ["".join(rng.choice(LETTERS, rng.integers(0, 8))) for _ in range(num_names)]
        name = "".join(rng.choice(LETTERS, rng.integers(0, 8)))
        for limit in (1, 3):
            assert nearest_names(name, known, limit) == by_difflib(name, known, limit), (name, known)


def test_most_names_are_never_compared(monkeypatch):
    rng = np.random.default_rng(0)
    known = ["".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 5)) + str(number) for number in range(10_000)]
    compared = []
    ratio = SequenceMatcher.ratio
    monkeypatch.setattr(SequenceMatcher, "ratio", lambda self: compared.append(self.a) or ratio(self))
    assert nearest_names(known[77] + "X", known)[0] == known[77]
    assert len(compared) < 200


@pytest.mark.parametrize("name", ["", "\0", "x" * 100_000, "\udcff", "☃" * 50])
def test_any_text_gets_an_answer(name):
    assert isinstance(Names([f"GENE{number}" for number in range(100)]).nearest(name), list)


def test_thousands_of_unknown_names_are_counted_and_the_first_get_suggestions():
    unknown = [f"GEEN{number}" for number in range(4000)]
    error = UnknownPerturbationError([*unknown, "y" * 10_000], [f"GENE{number}" for number in range(3000)])
    assert list(error.nearest) == unknown[:MOST_SUGGESTED]
    assert error.problems[-1] == f"and {4001 - MOST_SUGGESTED:,} more unknown names"
    assert len(str(error)) < 2000
    assert len(str(UnknownPerturbationError(["y" * 10_000], ["A"]))) < 300
