"""The reference pages of the documentation site: every command, key and metric stands there with its meaning."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "site" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(page: str) -> dict[str, list[str]]:
    """First column (without code marks) → the other columns."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| `")]
    return {line[0].strip().strip("`"): [one.strip() for one in line[1:]] for line in lines}


def test_every_key_has_a_type_and_a_meaning(reference):
    rows = rows_of(reference.configuration_page())
    assert [key for key, (kind, _, meaning) in rows.items() if not kind or not meaning] == []
    assert len(rows) > 150


def test_every_key_of_every_recipe_is_there(reference):
    """By another way than the page's own: the keys that a whole configuration has when it is written."""
    from steval.trainer.config import FinetuneConfig
    from steval.trainer.recipes import recipe_names, recipe_path

    rows = rows_of(reference.configuration_page())

    def keys(values, place=""):
        for name, value in values.items():
            yield f"{place}{name}"
            inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
            if isinstance(inner, dict):
                yield from keys(inner, f"{place}{name}{'' if inner is value else '[]'}.")

    for name in recipe_names():
        written = set(keys(FinetuneConfig.load(recipe_path(name)).as_dict()))
        assert sorted(written - set(rows)) == [], name


def test_defaults_are_those_of_the_models(reference):
    rows = rows_of(reference.configuration_page())
    assert rows["sets.size"] == ["whole number ≥ 1 ≤ 65,536", "`64`", "Cells of a set."]
    assert rows["STEVAL_MAX_CELLS"][1] == "`4096`"
    assert rows["hvg"][1] == "none"


def test_commands_and_metrics_are_whole(reference):
    from steval.cli.app import COMMANDS
    from steval.evaluator.metrics.catalog import CATALOG, with_arrow

    page = reference.commands_page()
    assert re.findall(r"^## steval (\w+)$", page, re.MULTILINE) == list(COMMANDS)
    assert "--only-common" in page and "Usage: steval score" in page
    assert set(rows_of(reference.metrics_page())) >= {with_arrow(name) for name in CATALOG}


def test_notebooks_become_pages(reference):
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = reference.notebook_page(path)
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert "".join(cell["source"]) in page


def test_the_navigation_names_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in nav] == []
