"""The notebooks of docs/notebooks, cell by cell: short, run on packaged cells and the tests' service; every result shows itself."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
MOST_LINES = 12
SERVICE = "http://127.0.0.1:3000"


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def shown(source: str, names: dict):
    """Run a cell; its last expression is what a notebook shows."""
    *rest, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        exec(source, names)
        return None
    exec(compile(ast.Module(rest, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_makes(notebook: Path, service_url: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = code_of(notebook)
    lines = [line for cell in cells for line in cell.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES, lines
    names: dict = {}
    for cell in cells:
        result = shown(cell.replace(SERVICE, service_url), names)
        if result is not None:
            pages = [getattr(result, way)() for way in ("_repr_html_", "_repr_png_") if hasattr(result, way)]
            assert pages or type(result).__repr__ is not object.__repr__, cell
    assert list(tmp_path.iterdir()) == []


def test_there_are_the_two():
    assert [path.stem for path in NOTEBOOKS] == ["h5ad-to-score", "service"]
