"""Numbers of things are said by `wording.counted`, so that nothing ever says "1 perturbations": source and outputs are searched."""

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.example import example
from steval.wording import counted

SOURCE = Path(__file__).parents[1] / "steval"
THINGS = (
    "adapters|batches|blocks|bytes|cells|checkpoints|checks|codes|columns|contexts|dimensions|effects|entries|errors|files|"
    "findings|genes|heads|jobs|labels|layers|matrices|members|metrics|minutes|models|names|numbers|others|pairs|parameters|"
    "paths|perturbations|phases|processes|profiles|requests|rows|scores|sets|steps|tasks|tenants|tensors|threads|types|"
    "values|workers"
)
NUMBERED = re.compile(rf"^ (?:[a-z]+ ){{0,2}}?(?:{THINGS})\b(?!')")
LOGGED = re.compile(rf"%d (?:[a-z]+ ){{0,2}}?(?:{THINGS})\b")
NO_THING = re.compile(
    r"^ (?:\w+ )?(?:is|has|was|holds|does|lacks|takes|needs|records|says|ends|declares|lies|that|of|the|in|part|predicts|tells|its|"
    r"on|by|read|and|without|hold|names no|names the|names -)\b"
)
"""What follows is no thing: `{path} holds cells`, `{source} names no perturbation`."""
PLURALS = {"what", "things", "kind", "noun"}
"""Names of a plural that is handed over as a word: `{len(lacking)} {what}`."""
A_LIMIT = re.compile(r"^([a-z_.]*\.)?[A-Z_]+$")
"""A constant of the program is known not to be 1."""
NAMES = {
    "measure/count_scan.py": {"side.name"},
    "measure/counts.py": {"self._side.name"},
    "measure/scan.py": {"side.name"},
    "measure/groups.py": {"side"},
    "metrics/functions.py": {"side.name"},
    "metrics/catalog.py": {"side"},
    "cells/pair.py": {"' and '.join(missing)"},
    "workflows/score.py": {"side"},
    "predictor/controls.py": {"what"},
    "predictor/plan.py": {"cell_type"},
    "checkpoints/transplant.py": {"backbone.kind"},
}
"""Words, not numbers: `the {side} cells`."""


def uncounted(source: str, names: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """Where a number stands before a plural in an f-string or in what is logged."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [
                ast.unparse(one.value) if isinstance(one, ast.FormattedValue) else one.value for one in node.values
            ]
            found += [
                f"line {node.lineno}: {{{number}}} {{{word}}}"
                for number, space, word in zip(parts, parts[1:], parts[2:], strict=False)
                if number.startswith("len(") and space == " " and word in PLURALS
            ]
            for value, after in zip(node.values, node.values[1:], strict=False):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                expression = ast.unparse(value.value)
                spec = ast.unparse(value.format_spec).strip("f'\"") if value.format_spec else ""
                known = A_LIMIT.match(expression) or expression in names or spec not in ("", ",")
                if NUMBERED.match(str(after.value)) and not NO_THING.match(str(after.value)) and not known:
                    found.append(f"line {node.lineno}: {{{expression}}}{after.value}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LOGGED.search(node.value):
            found.append(f"line {node.lineno}: {node.value}")
    return found


def test_numbers_of_things_are_counted():
    problems = []
    for path in sorted(SOURCE.rglob("*.py")):
        names = next((words for end, words in NAMES.items() if path.as_posix().endswith(end)), set())
        problems += [f"{path.relative_to(SOURCE)}, {one}" for one in uncounted(path.read_text(encoding="utf-8"), names)]
    assert problems == []


def test_sizes_of_memory_have_one_home():
    """`wording.memory_size` never says 0.0 GiB; a number divided in a message may."""
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\{[^{}]*(2\s*\*\*\s*[123]0|<< [123]0|1e9|1024)[^{}]*:[^{}]*\}", line)
    ]
    assert found == []


def test_templates_count_too():
    number = re.compile(rf"\}}\}} (?:[a-z]+ )?(?:{THINGS})\b")
    pages = sorted(SOURCE.rglob("*.j2"))
    assert [f"{page.name}: {found}" for page in pages for found in number.findall(page.read_text())] == []
    assert len(pages) >= 2


@pytest.mark.parametrize(
    "source",
    ['f"{n} perturbations"', 'f"{len(x):,} predicted cells of {y}"', 'log.info("%d cells of %s", n, name)'],
)
def test_what_is_not_counted_is_found(source):
    assert uncounted(source)


@pytest.mark.parametrize(
    "source", ['f"{MOST} cells"', 'f"{path} names no cells"', 'f"{x:g} times", f"{counted(n, 1)} x"']
)
def test_what_is_no_number_is_left_alone(source):
    assert uncounted(source) == []


@pytest.mark.parametrize(("number", "said"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (12_000, "12,000 jobs")])
def test_one_is_singular(number, said):
    assert counted(number, "job") == said


def test_what_is_more_than_an_s():
    assert [counted(n, "job waits", "jobs wait") for n in (1, 2)] == ["1 job waits", "2 jobs wait"]


def test_commands_that_meet_one_perturbation_say_so(tmp_path):
    """What they print and write."""
    cells = example()
    one = cells[cells.obs["target_gene"].isin(["STAT1", "non-targeting"])].copy()
    one.write_h5ad(tmp_path / "counts.h5ad")
    said = []
    for arguments in (
        ("prepare", "counts.h5ad", "-o", "one.h5ad", "--cell-type-name", "H1", "--min-cells", "1", "--min-genes", "1"),
        ("init", "one.h5ad", "-o", "one.yaml"),
        (
            "score",
            "one.h5ad",
            "--real",
            "one.h5ad",
            "--train",
            "one.h5ad",
            "--profile",
            "minimal",
            "--bootstrap",
            "0",
            "-o",
            "score",
        ),
    ):
        paths = [
            str(tmp_path / word) if re.search(r"\.(h5ad|yaml)$|^score$", word) and n else word
            for n, word in enumerate(arguments)
        ]
        result = CliRunner().invoke(app, paths)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        said.append(result.output)
    said += [(tmp_path / name).read_text(encoding="utf-8") for name in ("one.yaml", "score/report.html")]
    plural = re.compile(rf"(?<![\d.,×-])\b1 (?:[a-z]+ ){{0,2}}?(?:{THINGS})\b[^.\n]{{0,40}}")
    assert [found for text in said for found in plural.findall(text)] == []
    assert any("1 perturbation" in text for text in said)
