"""Splits: seeded, complete, exclusive; what the data lacks or a part without cells is an error."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steval.data.columns import Columns
from steval.data.splits.assignment import (
    SHARED_CONTROL,
    TEST,
    TRAIN,
    UNUSED,
    VAL,
    CellSplit,
    ContextSplit,
    TomlSplit,
    assign_parts,
    parse_split,
)
from steval.errors import ConfigError, DataError

CONTROL = "non-targeting"
COLUMNS = Columns()


def obs_of(groups: list[tuple[str, str, int]]) -> pd.DataFrame:
    """Cells by (context, perturbation, number)."""
    rows = [(context, name) for context, name, number in groups for _ in range(number)]
    frame = pd.DataFrame(rows, columns=pd.Index(["cell_type", "target_gene"]))
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


TWO_CONTEXTS = obs_of(
    [(context, name, 10) for context in ("k562", "rpe1") for name in ("A", "B", "C")]
    + [("k562", CONTROL, 20), ("rpe1", CONTROL, 20)]
)


def counts(codes: np.ndarray, obs: pd.DataFrame, context: str, name: str) -> dict[int, int]:
    chosen = codes[((obs["cell_type"] == context) & (obs["target_gene"] == name)).to_numpy()]
    return {int(code): int(number) for code, number in zip(*np.unique(chosen, return_counts=True), strict=True)}


def test_cells_are_divided_within_each_context_and_perturbation() -> None:
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, CellSplit(val=0.2, test=0.3))
    for context in ("k562", "rpe1"):
        for name in ("A", "B", "C"):
            assert counts(codes, TWO_CONTEXTS, context, name) == {TRAIN: 5, VAL: 2, TEST: 3}
        assert counts(codes, TWO_CONTEXTS, context, CONTROL) == {SHARED_CONTROL: 20}


def test_controls_can_be_divided_too() -> None:
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, CellSplit(val=0.2, test=0.3, controls="split"))
    assert counts(codes, TWO_CONTEXTS, "rpe1", CONTROL) == {TRAIN: 10, VAL: 4, TEST: 6}
    listed = ContextSplit(val={"k562": ("A",)}, controls="split", control_val=0.25, control_test=0)
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, listed)
    assert counts(codes, TWO_CONTEXTS, "k562", CONTROL) == {TRAIN: 15, VAL: 5}


def test_a_seed_gives_one_split_and_another_gives_another() -> None:
    first, again = (assign_parts(TWO_CONTEXTS, COLUMNS, CellSplit(seed=3)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, assign_parts(TWO_CONTEXTS, COLUMNS, CellSplit(seed=4)))


def test_another_perturbation_in_the_file_moves_no_cell() -> None:
    without = TWO_CONTEXTS[TWO_CONTEXTS["target_gene"] != "B"]
    all_codes = assign_parts(TWO_CONTEXTS, COLUMNS, CellSplit())
    assert np.array_equal(assign_parts(without, COLUMNS, CellSplit()), all_codes[without.index])


@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    val=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
    seed=st.integers(0, 2**31),
)
def test_every_perturbation_of_three_cells_is_in_every_part(
    sizes: list[int], val: float, test: float, seed: int
) -> None:
    obs = obs_of([("x", f"P{number}", size) for number, size in enumerate(sizes)] + [("x", CONTROL, 4)])
    codes = assign_parts(obs, COLUMNS, CellSplit(val=val, test=test, seed=seed))
    for number, size in enumerate(sizes):
        found = counts(codes, obs, "x", f"P{number}")
        assert set(found) == {TRAIN, VAL, TEST}
        assert sum(found.values()) == size
        assert found[VAL] <= max(1, val * size + 0.5)


def test_contexts_hold_out_what_they_list_and_nothing_else() -> None:
    split = ContextSplit(val={"rpe1": ("A",)}, test={"rpe1": ("B", "C")})
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, split)
    assert counts(codes, TWO_CONTEXTS, "rpe1", "A") == {VAL: 10}
    assert counts(codes, TWO_CONTEXTS, "rpe1", "C") == {TEST: 10}
    assert counts(codes, TWO_CONTEXTS, "k562", "A") == {TRAIN: 10}
    assert counts(codes, TWO_CONTEXTS, "rpe1", CONTROL) == {SHARED_CONTROL: 20}


def test_a_whole_context_can_be_held_out() -> None:
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, ContextSplit(val={"k562": ("A",)}, test={"rpe1": "all"}))
    assert {code for name in "ABC" for code in counts(codes, TWO_CONTEXTS, "rpe1", name)} == {TEST}


def test_the_context_column_can_be_another_than_the_cell_type() -> None:
    obs = TWO_CONTEXTS.assign(replicate=np.where(np.arange(len(TWO_CONTEXTS)) % 2, "rep_1", "rep_2"))
    codes = assign_parts(obs, COLUMNS, ContextSplit(cell_type_key="replicate", val={"rep_2": ("A",)}))
    assert set(codes[(obs["replicate"] == "rep_2") & (obs["target_gene"] == "A")]) == {VAL}
    assert set(codes[(obs["replicate"] == "rep_1") & (obs["target_gene"] == "A")]) == {TRAIN}
    with pytest.raises(DataError, match=r"no obs column 'plate'.*cell_type, target_gene, replicate"):
        assign_parts(obs, COLUMNS, ContextSplit(cell_type_key="plate", val={"rep_2": ("A",)}))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        pytest.param(
            ContextSplit(val={"rpe2": ("A",)}), r"context 'rpe2' is not in the data; it has: rpe1", id="context"
        ),
        pytest.param(ContextSplit(val={"rpe1": ("Aa",)}), r"'Aa' has no cell in context 'rpe1'; nearest: A", id="name"),
        pytest.param(
            ContextSplit(val={"rpe1": ("A",)}, test={"rpe1": ("A", "B")}), r"'A' .*is in val and in test", id="in two"
        ),
        pytest.param(ContextSplit(val={"rpe1": ("A", CONTROL)}), r"is the control", id="control"),
        pytest.param(
            ContextSplit(val={"rpe1": "all"}, test={"rpe1": ("B",)}),
            r"as a whole and by perturbation",
            id="whole and part",
        ),
        pytest.param(ContextSplit(val={"rpe1": ()}), r"no perturbed cells in val", id="empty val"),
        pytest.param(
            ContextSplit(val={"rpe1": "all"}, test={"k562": "all"}), r"no perturbed cells in train", id="empty train"
        ),
        pytest.param(
            ContextSplit(val={"rpe1": ("A",)}, test={"rpe1": ()}), r"no perturbed cells in test", id="empty test"
        ),
    ],
)
def test_a_split_that_does_not_fit_the_data_says_why(split: ContextSplit, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign_parts(TWO_CONTEXTS, COLUMNS, split)


def test_too_few_cells_for_a_part_are_an_error() -> None:
    obs = obs_of([("x", "A", 2), ("x", CONTROL, 5)])
    with pytest.raises(
        DataError, match=r"no perturbed cells in val and test \(cells by part: train 2, val 0, test 0\)"
    ):
        assign_parts(obs, COLUMNS, CellSplit())


def test_plain_values_become_settings_and_back() -> None:
    split = ContextSplit(val={"rep_2": ("A",)}, test={"rep_2": "all"})
    assert parse_split(split.as_dict()) == split
    with pytest.raises(ConfigError, match=r"sedd: unknown key; did you mean 'seed'"):
        parse_split({"by": "cells", "sedd": 1})
    with pytest.raises(ConfigError, match="a whole in val and in test: rpe1"):
        parse_split({"by": "contexts", "val": {"rpe1": "all"}, "test": {"rpe1": "all"}})
    with pytest.raises(ConfigError, match="nothing to train on"):
        parse_split({"by": "cells", "val": 0.6, "test": 0.4})


def test_a_data_set_that_is_not_trained_on_gives_only_its_named_contexts() -> None:
    table = {"datasets": {"x": "x"}, "rules": {"x": {"trains": False, "fewshot": {"rpe1": {"val": ["A"]}}}}}
    split = parse_split({"by": "toml", "path": "split.toml", "table": table})
    assert isinstance(split, TomlSplit)
    codes = assign_parts(TWO_CONTEXTS, COLUMNS, split)
    assert counts(codes, TWO_CONTEXTS, "k562", "A") == {UNUSED: 10}
    assert counts(codes, TWO_CONTEXTS, "k562", CONTROL) == {UNUSED: 20}
    assert counts(codes, TWO_CONTEXTS, "rpe1", "A") == {VAL: 10}
    assert counts(codes, TWO_CONTEXTS, "rpe1", "B") == {TRAIN: 10}
