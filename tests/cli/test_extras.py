"""A package of an extra that is not installed: one sentence with a command that works in a clone, wherever it is missed."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import EXTRAS, app
from steval.wording import needs_extra

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("package", "extra"), sorted(EXTRAS.items()))
def test_a_missing_package_is_one_sentence_with_its_extra(package, extra, monkeypatch):
    import steval.workflows.doctor as home

    def missing(*arguments: object, **options: object):
        raise ModuleNotFoundError(f"No module named '{package}.sub'", name=f"{package}.sub")

    monkeypatch.setattr(home, "diagnose", missing)
    done = CliRunner().invoke(app, ["doctor", "quick-cpu"])
    assert done.exit_code == 2
    assert f"needs {package}" in done.stderr
    assert f"pip install -c constraints.txt '.[{extra}]'" in done.stderr


def test_the_table_is_what_the_extras_bring():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.split(r"[<>=]", one)[0] == package for one in extras[extra]), package


def test_no_page_and_no_message_installs_steval_from_an_index():
    """There is no such package of ours: the name on an index would be somebody else's."""
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *(ROOT / "steval").rglob("*.py")]
    advice = re.compile(r"pip install[^\n`&]*['\" ]steval(\[|['\" ]|$)")
    assert [str(page) for page in pages if advice.search(page.read_text(encoding="utf-8"))] == []
    assert "'.[serve]'" in needs_extra("x", "BentoML", "serve")


def test_no_page_names_a_place_that_is_none():
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.*"), *(ROOT / "steval").rglob("*.py")]
    assert [str(page) for page in pages if page.is_file() and ".invalid" in page.read_text(encoding="utf-8")] == []
