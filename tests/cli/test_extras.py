"""A package of an extra that is not installed: one sentence with a command that works in a clone, wherever it is missed."""

import platform
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from steval.cli.app import EXTRAS, app
from steval.data.cells.variable_genes import variable_genes
from steval.errors import ConfigError
from steval.evaluator.metrics.clustering import clustering_agreement
from steval.machine import package_versions
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


@pytest.mark.parametrize("package", ["cell-eval", "scanpy"])
def test_what_the_serving_image_lacks_is_one_sentence(package, monkeypatch):
    module = package.replace("-", "_")
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed here.* constraints.txt {package}$"):
        if package == "scanpy":
            variable_genes(sp.csr_matrix(np.eye(5)), list("ABCDE"), 2)
        else:
            clustering_agreement(np.eye(5), np.eye(5), list("ABCDE"), {})


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


def test_records_say_what_is_not_installed():
    found = package_versions(["numpy", "no-such-package"])
    assert found == {"python": platform.python_version(), "numpy": np.__version__, "no-such-package": "not installed"}
