"""Requests: every form gives the same items, and every problem of a bad one is told at once."""

import numpy as np
import pytest

from steval.data.cells.cellfile import CellFile
from steval.errors import ConfigError, DataError, UnknownPerturbationError
from steval.predictor.controls import checkpoint_controls
from steval.predictor.plan import make_plan
from steval.predictor.request_files import items_like, read_request
from steval.predictor.requests import MOST_CELLS, PredictionRequest, request_names, split_names

KNOWN = ["MED12", "SRC", "STAT1", "TET1", "TMSB4X", "non-targeting"]


def write(tmp_path, text, name="request.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def read(path, **options):
    return read_request(path, known=KNOWN, control="non-targeting", **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("r.csv", "perturbation,num_cells\nSTAT1,50\nSRC,20\n", id="csv"),
        pytest.param("r.tsv", "perturbation\tnum_cells\nSTAT1\t50\nSRC\t20\n", id="tsv"),
        pytest.param("r.csv", "\ufeffPerturbation, Num_Cells\r\nSTAT1, 50\r\n\r\nSRC,20.0\r\n", id="bom, CRLF, blanks"),
        pytest.param("r.tsv", "\ufeffperturbation\tnum_cells\nSTAT1\t50\nSRC\t20\n", id="bom, tabs"),
        pytest.param("r.csv", "gene_id,target_gene,n_cells\n1,STAT1,50\n2,SRC,20\n", id="other columns, other names"),
        pytest.param("r.csv", 'perturbation;num_cells\n"STAT1";50\nSRC;20', id="semicolons and quotes"),
    ],
)
def test_tables_in_every_dress_say_the_same(tmp_path, name, text):
    request = read(write(tmp_path, text, name), seed=5)
    assert [(item.perturbation, item.num_cells) for item in request.items] == [("STAT1", 50), ("SRC", 20)]
    assert (request.seed, request.num_cells) == (5, 70)


def test_challenge_table(tmp_path):
    request = read(write(tmp_path, "target_gene,n_cells,median_umi_per_cell\nSTAT1,50,24317.5\n"))
    assert request.items[0].median_umi == 24317.5


def test_table_of_names_alone_takes_the_default_number(tmp_path):
    request = read(write(tmp_path, "perturbation\nSTAT1\nSRC\n", "names.txt"), num_cells=7)
    assert [item.num_cells for item in request.items] == [7, 7]


def test_every_problem_of_a_table_is_told_at_once(tmp_path):
    text = "perturbation,num_cells\nSTAT1,-5\nSRC,many\n,3\nTET1\nTET1,nan\nSTAT11,4\n"
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, text))
    message = str(caught.value)
    for part in (
        "line 2: num_cells must be a whole number of at least 1, got '-5'",
        "line 3: num_cells must be a whole number of at least 1, got 'many'",
        "line 4: no perturbation",
        "line 5: 1 value for 2 columns",
        "got 'nan'",
        "unknown perturbation 'STAT11'; nearest: STAT1",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("perturbation,num_cells\n", "names no perturbation", id="header only"),
        pytest.param("gene,n\nSTAT1,3\n", "none that names the perturbation", id="no such column"),
        pytest.param("perturbation,target_gene\nA,B\n", "two columns that mean perturbation", id="column twice"),
        pytest.param("perturbation\nSTAT1\nSTAT1\n", "more than once", id="name twice"),
    ],
)
def test_bad_tables(tmp_path, text, match):
    with pytest.raises(ConfigError, match=match):
        read(write(tmp_path, text))


def test_unknown_names_alone_are_an_unknown_perturbation_error(tmp_path):
    with pytest.raises(UnknownPerturbationError) as caught:
        read(write(tmp_path, "perturbation\nSTAT11\nSRC\nMED13\n"))
    assert caught.value.unknown == ("STAT11", "MED13")
    assert caught.value.nearest["STAT11"][0] == "STAT1"


@pytest.mark.parametrize("name", ["r.xlsx", "r"])
def test_other_files_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"\.csv, \.tsv, \.txt or \.h5ad"):
        read(write(tmp_path, "x", name))


def test_binary_file_named_csv(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read(tmp_path / "r.csv")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such request file"):
        read(tmp_path / "absent.csv")


def test_as_in_this_file_leaves_the_controls_out(cells_path):
    request = read(cells_path)
    assert {(item.perturbation, item.num_cells) for item in request.items} == {(name, 100) for name in KNOWN[:5]}


def test_as_in_this_file_by_batch_and_cell_type(cells):
    both = cells.copy()
    both.obs["cell_type"] = ["A" if row % 4 else "B" for row in range(both.n_obs)]
    items = items_like(CellFile.wrap(both), by_batch=True)
    perturbed = both.obs[both.obs["target_gene"] != "non-targeting"]
    counted = perturbed.groupby(["target_gene", "cell_type", "batch"], observed=True).size()
    assert {(i.perturbation, i.cell_type, i.batch): i.num_cells for i in items} == counted.astype(int).to_dict()


def test_limits():
    request = PredictionRequest.parse({"items": [{"perturbation": "A", "num_cells": n} for n in (3, 50, 900)]})
    assert [item.num_cells for item in request.with_limits(10, 200).items] == [10, 50, 200]
    with pytest.raises(ConfigError, match="more than"):
        request.with_limits(10, 5)


def test_bad_requests_name_every_bad_field():
    values = {"items": [{"perturbation": "", "num_cells": 0}], "seed": -1, "outputs": "mean"}
    with pytest.raises(ConfigError) as caught:
        PredictionRequest.parse(values)
    assert len(caught.value.problems) == 4
    assert "did you mean 'output'" in str(caught.value)


def test_names_with_commas_are_split_by_what_is_known():
    drug = "[('Aspirin', 0.5, 'uM')]"
    assert split_names(f"STAT1, {drug},SRC,", [*KNOWN, drug]) == ["STAT1", drug, "SRC"]
    assert split_names("NOPE,STAT1", KNOWN) == ["NOPE", "STAT1"]


def test_no_names():
    with pytest.raises(ConfigError, match="names no perturbation"):
        request_names([])


@pytest.mark.parametrize("number", ["99999999999999999999", "1e20", str(MOST_CELLS + 1)])
def test_more_cells_than_a_request_may_have_are_refused_with_the_limit(tmp_path, number):
    with pytest.raises(ConfigError, match=rf"line 2: num_cells .* at most {MOST_CELLS}, got '{number}'"):
        read(write(tmp_path, f"perturbation,num_cells\nSTAT1,{number}\n"))
    several = "perturbation,num_cells\n" + "".join(f"{name},{MOST_CELLS // 2}\n" for name in KNOWN[:3])
    with pytest.raises(
        ConfigError, match=f"150,000,000 cells of 3 perturbations; a request has at most {MOST_CELLS:,}"
    ):
        read(write(tmp_path, several))
    with pytest.raises(ConfigError, match="at most"):
        request_names(["STAT1", "SRC"], 5).with_limits(min_cells=MOST_CELLS)


def test_a_large_request_is_planned_at_once_and_drawn_as_it_is_taken(checkpoint):
    pool = checkpoint_controls(checkpoint)
    plan = make_plan(request_names(["STAT1"], MOST_CELLS), pool, checkpoint.manifest)
    assert plan.num_cells == MOST_CELLS
    first = next(plan.sets())
    (alone,) = make_plan(request_names(["STAT1"], first.num_cells), pool, checkpoint.manifest).sets()
    np.testing.assert_array_equal(first.control_indices, alone.control_indices)
    with pytest.raises(ConfigError, match=r"sets of 1,000,000,000,000 cells .* at most 65,536"):
        make_plan(request_names(["STAT1"], 5), pool, checkpoint.manifest, set_size=10**12)


def test_a_file_without_cell_types_is_predicted_in_those_that_are_asked_for(tmp_path, cells):
    table = write(tmp_path, "perturbation,num_cells\nSTAT1,3\n")
    for asked, expected in ((["A"], ["A"]), (["A", "B"], ["A", "B"]), (["all"], ["A", "B", "C"])):
        items = read(table, cell_types=asked, present_types=["A", "B", "C"]).items
        assert [(item.perturbation, item.num_cells, item.cell_type) for item in items] == [
            ("STAT1", 3, one) for one in expected
        ]
    cells.write_h5ad(tmp_path / "r.h5ad")
    assert {item.cell_type for item in read(tmp_path / "r.h5ad", cell_types=["A"]).items} == {"A"}
    own = write(tmp_path, "perturbation,num_cells,cell_type\nSTAT1,3,B\n", "own.csv")
    with pytest.raises(ConfigError, match="leave --cell-type out"):
        read(own, cell_types=["A"])
