"""cell-load's split file: perturbed cells go where cell-load puts them; what it passes over is an error."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from steval.data.reference import Part
from steval.data.splits.settings import TomlSplit
from steval.data.splits.toml import dataset_files, parse_split_toml, read_split_toml
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.errors import ConfigError, DataError
from support.cells_on_disk import CONTROL
from support.split_tomls import SPLITS, write_data, write_split

HERE = Path(__file__).parent
COUNTS = CellsSettings(target_sum=10_000)
Assignment = dict[str, dict[str, dict[str, int]]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datasets")
    write_data(directory)
    return directory


def perturbed(assignment: Assignment) -> Assignment:
    """Without the control cells, which every part shares."""
    kept = {
        part: {place: {name: n for name, n in groups.items() if name != CONTROL} for place, groups in places.items()}
        for part, places in assignment.items()
    }
    return {part: {place: groups for place, groups in places.items() if groups} for part, places in kept.items()}


def ours(path: Path) -> Assignment:
    cells = TrainingCells.open(COUNTS, TomlSplit(path=str(path)))
    assert isinstance(cells.split, TomlSplit)
    number = np.repeat(np.arange(len(cells.paths)), [file.num_cells for file in cells.store.files])
    result: Assignment = {}
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        places: dict[str, dict[str, int]] = {}
        for cell in cells.part(part):
            dataset = cells.split.file_datasets[number[cell]]
            groups = places.setdefault(f"{dataset}.{cells.cell_types[cells.cell_type_codes[cell]]}", {})
            name = cells.perturbations[cells.perturbation_codes[cell]]
            groups[name] = groups.get(name, 0) + 1
        result[part] = places
    return result


@pytest.mark.parametrize("name", SPLITS)
def test_perturbed_cells_are_where_cell_load_puts_them(name: str, data_dir: Path) -> None:
    expected = json.loads((HERE / "cell_load_splits.json").read_text())["splits"][name]
    assert ours(write_split(data_dir, name)) == perturbed(expected)


@pytest.mark.peer
@pytest.mark.parametrize("name", SPLITS)
def test_the_stored_assignments_are_those_of_cell_load(name: str, data_dir: Path) -> None:
    interpreter = os.environ.get("STEVAL_CELL_LOAD_PYTHON")
    if not interpreter:
        pytest.skip("STEVAL_CELL_LOAD_PYTHON names no interpreter that has cell-load")
    command = [
        interpreter,
        "-W",
        "ignore",
        str(HERE.parent / "support" / "cell_load_assignments.py"),
        str(write_split(data_dir, name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    stored = json.loads((HERE / "cell_load_splits.json").read_text())["splits"][name]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == stored


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        pytest.param(
            '[fewshot."alpha.rpe1"]\nval = ["G9"]', r"val: perturbation 'G9' has no cell in context 'rpe1'", id="name"
        ),
        pytest.param(
            '[fewshot."alpha.rpe2"]\nval = ["G0"]', r"context 'rpe2' is not in the data; it has: rpe1", id="context"
        ),
        pytest.param(
            '[zeroshot]\n"alpha.hepg2" = "val"', r"context 'hepg2' is not in the data", id="another's context"
        ),
        pytest.param(
            '[fewshot."alpha.rpe1"]\nval = ["G0"]\ntest = ["G0"]', r"'G0' .* is in val and in test", id="in two"
        ),
        pytest.param(
            '[zeroshot]\n"alpha.rpe1" = "test"\n[fewshot."alpha.rpe1"]\nval = ["G0"]', r"as a whole and by", id="both"
        ),
        pytest.param('[zeroshot]\n"alpha.rpe1" = "test"', r"no perturbed cells in val", id="no val"),
    ],
)
def test_what_does_not_fit_the_data_is_an_error(rules: str, message: str, data_dir: Path) -> None:
    path = data_dir / "wrong.toml"
    path.write_text(f'[datasets]\nalpha = "{data_dir}/alpha"\n[training]\nalpha = "train"\n{rules}\n', encoding="utf-8")
    with pytest.raises(DataError, match=message):
        TrainingCells.open(COUNTS, TomlSplit(path=str(path)))


def test_all_problems_of_a_file_are_reported_together() -> None:
    content = {
        "datasets": {"alpha": "x"},
        "training": {"alpah": "train", "alpha": "val"},
        "fewshots": {},
        "zeroshot": {"alpha": "test"},
    }
    with pytest.raises(ConfigError) as caught:
        parse_split_toml(content, "split.toml")
    text = str(caught.value)
    for expected in ("[fewshots]", "alpah", 'always "train"', "'alpha' is not \"dataset.context\""):
        assert expected in text


def test_a_part_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"zeroshot\.k562"):
        parse_split_toml({"datasets": {"a": "x"}, "zeroshot": {"a.k562": "validation"}}, "split.toml")
    with pytest.raises(ConfigError, match=r"fewshot\.k562"):
        parse_split_toml({"datasets": {"a": "x"}, "fewshot": {"a.k562": {"validate": ["G0"]}}}, "split.toml")


def test_a_missing_or_broken_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such split file"):
        read_split_toml(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[datasets\n")
    with pytest.raises(ConfigError, match="not a readable TOML"):
        read_split_toml(tmp_path / "broken.toml")


def test_names_with_dots_belong_to_the_longest_data_set() -> None:
    table = parse_split_toml(
        {"datasets": {"a": "x", "a.b": "y"}, "zeroshot": {"a.b.c": "val", "a.d": "test"}}, "split.toml"
    )
    assert table.of("a.b").zeroshot == {"c": "val"}
    assert table.of("a").zeroshot == {"d": "test"}


def test_data_set_places_are_directories_files_globs_and_alternatives(tmp_path: Path) -> None:
    for name in ("a.h5ad", "b.h5ad", "c.h5", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in dataset_files(str(tmp_path))] == ["a.h5ad", "b.h5ad", "c.h5"]
    assert [path.name for path in dataset_files(str(tmp_path / "a.h5ad"))] == ["a.h5ad"]
    assert [path.name for path in dataset_files(str(tmp_path / "?.h5ad"))] == ["a.h5ad", "b.h5ad"]
    assert [path.name for path in dataset_files(str(tmp_path / "{a,b}.h5ad"))] == ["a.h5ad", "b.h5ad"]
    with pytest.raises(DataError, match="without any h5ad file"):
        parse_split_toml({"datasets": {"x": str(tmp_path / "none")}, "training": {"x": "train"}}, "s.toml").files()


def test_the_resolved_split_needs_no_second_file(data_dir: Path) -> None:
    path = write_split(data_dir, "zeroshot and fewshot")
    cells = TrainingCells.open(COUNTS, TomlSplit(path=str(path)))
    reference = cells.reference("test")
    path.unlink()
    assert reference.split is not None
    again = TrainingCells.open(COUNTS, TomlSplit.model_validate(reference.split))
    assert np.array_equal(again.part_codes, cells.part_codes)
    assert reference.perturbations == ("G0", "G1", "G2", "G3", "G4", "G5")


@pytest.mark.parametrize("section", ["datasets", "training", "zeroshot", "fewshot"])
@pytest.mark.parametrize("value", ["3", '"a"', "[1]", "[{a = 1}]"])
def test_a_section_that_is_no_table_is_said(tmp_path: Path, section: str, value: str) -> None:
    path = tmp_path / "split.toml"
    others = {"datasets": 'datasets = {x = "x.h5ad"}', "training": 'training = {x = "train"}'}
    lines = [f"{section} = {value}", *(line for name, line in others.items() if name != section)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"{section} must be a table, \[{section}\], got (int|str|list)"):
        read_split_toml(path)


def test_a_byte_order_mark_and_deep_nesting(tmp_path: Path) -> None:
    path = tmp_path / "split.toml"
    path.write_text('[datasets]\nx = "x.h5ad"\n[training]\nx = "train"\n', encoding="utf-8-sig")
    assert read_split_toml(path).datasets == {"x": "x.h5ad"}
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="is not a readable TOML split file"):
        read_split_toml(path)
