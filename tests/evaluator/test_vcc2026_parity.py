"""The profile vcc2026 against cell-eval2 0.20.0: its values of four pairs are kept here, all pairs are run where it is installed.

`python tests/support/count_values.py PYTHON`, PYTHON being an interpreter that has cell-eval2 and pdex, makes the kept files anew.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.count_parity import METRICS, P_VALUES, compare, p_value_gap, scored
from support.count_screens import KEPT, pairs
from support.count_values import PAIRS, VALUES, kept_pair

SCRIPT = Path(__file__).parents[1] / "support" / "cell_eval2_values.py"
PYTHON = os.environ.get("STEVAL_CELL_EVAL2_PYTHON")
NAMES = ["plain", "few", "many", "uneven", "one cell", "ties", "silent genes", "target not measured", "identical", "controls",
         "wrong depth", "no effect", "two contexts"]  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_kept_pairs_have_cell_eval2s_values(name):
    theirs = json.loads(VALUES.read_text(encoding="utf-8"))[name]
    report = scored(*kept_pair(name))
    assert all(gap < METRICS for gap in compare(report, theirs).values())
    assert report.record["notes"]


def test_the_kept_pairs_are_the_generated_ones():
    """Else the script that makes them no longer describes them."""
    made = pairs()
    for name in KEPT:
        for kept, fresh in zip(kept_pair(name), made[name], strict=True):
            assert (kept.X != fresh.X).nnz == 0
            assert kept.obs["target_gene"].astype(str).tolist() == fresh.obs["target_gene"].astype(str).tolist()
    assert PAIRS.stat().st_size < 200_000


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    if PYTHON is None:
        pytest.skip("STEVAL_CELL_EVAL2_PYTHON names no interpreter that has cell-eval2 and pdex")
    directory = tmp_path_factory.mktemp("pairs")
    made = pairs()
    assert list(made) == NAMES
    for name, (pred, real) in made.items():
        pred.write_h5ad(directory / f"{name}.pred.h5ad")
        real.write_h5ad(directory / f"{name}.real.h5ad")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "NUMBA_CACHE_DIR")}
    process = subprocess.run([PYTHON, SCRIPT, directory], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return made, json.loads(process.stdout)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pairs_have_cell_eval2s_values(name, theirs):
    made, values = theirs
    pred, real = made[name]
    report = scored(pred, real)
    if name == "two contexts":
        gaps = {}
        for context in "AB":
            of_context = compare(report, values[f"{name}/{context}"], context)
            gaps |= {f"{context} {what}": gap for what, gap in of_context.items()}
        mean = sum(values[f"{name}/{context}"]["score"]["avg_score"] for context in "AB") / 2
        gaps["mean"] = abs(report.score - mean)
    else:
        gaps = compare(report, values[name])
        assert p_value_gap(pred, real, values[name]) < P_VALUES
    assert all(gap < METRICS for gap in gaps.values()), gaps
