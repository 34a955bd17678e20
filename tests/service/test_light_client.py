"""`steval-client` (`client/pyproject.toml`): the client alone, from its own files, with httpx and Python's own library."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata as ad
import pytest

from support.documented import ROOT, blocks
from support.service_models import free_port

CLIENT = ROOT / "client"
ALLOWED = ("httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "typing_extensions")
"""httpx and what it needs."""
ALONE = f"""
import sys

class Alone:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root in {(*ALLOWED, "steval")!r} or root.startswith("_"):
            return None
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Alone())
"""
"""Nothing is importable but Python's own, httpx's and ours."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The files of the distribution, as its wheel has them."""
    files = tomllib.loads((CLIENT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "force-include"
    ]
    place = tmp_path_factory.mktemp("light")
    for source, target in files.items():
        (place / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIENT / source, place / target)
    return place


def run_alone(installed: Path, code: str, directory: Path) -> dict:
    """What `code` prints as JSON in a process that finds the distribution's files and httpx alone."""
    script = f"{ALONE}\nsys.path.insert(0, {str(installed)!r})\nimport json\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_imports_what_it_ships_and_ships_what_it_imports(installed, tmp_path):
    loaded = run_alone(
        installed, "import steval.service.client\nprint(json.dumps({name: 1 for name in sys.modules}))", tmp_path
    )
    ours = {name for name in loaded if name.split(".")[0] == "steval"}
    shipped = {
        path.relative_to(installed).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in installed.rglob("*.py")
    }
    assert ours - {"steval.data"} == shipped  # `steval.data` is a namespace there
    others = {name.split(".")[0] for name in loaded} - {"steval"} - set(sys.stdlib_module_names)
    assert {name for name in others if not name.startswith("_")} <= set(ALLOWED)


def test_a_prediction_without_torch_numpy_or_anything_of_ours(installed, service_url, http, tmp_path):
    code = f"""
from steval.errors import ConfigError, DataError
from steval.service.client import ServiceClient
said = {{}}
with ServiceClient({service_url!r}) as service:
    said["genes"] = service.model()["num_genes"]
    answer = service.predict(["STAT1"], cells=20, seed=3)
with ServiceClient("http://127.0.0.1:9") as nobody:  # what is lacking is said before anybody is asked
    for ask in (nobody.predict_means, nobody.predict_cells):
        try:
            ask(["STAT1"])
        except ConfigError as found:
            said.setdefault("before", []).append(str(found))
with ServiceClient({service_url!r}) as service:
    said["mean"] = answer["predictions"][0]["mean"]
    service.save_predictions("preds.h5ad", ["STAT1", "TET1"], cells=5)
    for ask, error in ((lambda: service.predict_means(["STAT1"]), ConfigError), (lambda: service.predict(["STAT2"]), DataError)):
        try:
            ask()
        except error as found:
            said[error.__name__] = str(found)
print(json.dumps(said))
"""
    said = run_alone(installed, code, tmp_path)
    answer = http.post("/predict", json={"perturbations": ["STAT1"], "cells": 20, "seed": 3}).json()
    assert said["mean"] == answer["predictions"][0]["mean"] and len(said["mean"]) == said["genes"]
    assert "pip install numpy" in said["ConfigError"] and "predict gives lists" in said["ConfigError"]
    assert all("pip install numpy" in one for one in said["before"]) and len(said["before"]) == 2
    assert "nearest known STAT1" in said["DataError"]
    assert set(ad.read_h5ad(tmp_path / "preds.h5ad").obs["target_gene"]) == {"STAT1", "TET1", "non-targeting"}


def test_the_python_of_the_readme_runs(installed, service_url, tmp_path):
    (code,) = blocks(CLIENT / "README.md", "python")
    code = code.replace("http://127.0.0.1:3000", service_url)
    assert len(run_alone(installed, f"{code}\nprint(json.dumps(answer))", tmp_path)["predictions"]) == 1
    assert ad.read_h5ad(tmp_path / "preds.h5ad").obs["predicted"].sum() == 400


def test_what_is_steval_s_own_says_so(installed, tmp_path):
    code = f"""
import steval
from steval.errors import ServiceError
from steval.service.client import ServiceClient
said = {{}}
try:
    steval.connect
except AttributeError as error:
    said["connect"] = str(error)
try:
    ServiceClient("http://127.0.0.1:{free_port()}").model()
except ServiceError as error:
    said["nobody"] = str(error)
print(json.dumps(said))
"""
    said = run_alone(installed, code, tmp_path)
    assert "installed is steval-client" in said["connect"]
    assert "no answer from the service" in said["nobody"]


def test_its_one_dependency_is_steval_s_own():
    light, whole = (tomllib.loads((place / "pyproject.toml").read_text())["project"] for place in (CLIENT, ROOT))
    assert light["dependencies"] == [one for one in whole["optional-dependencies"]["serve"] if one.startswith("httpx")]
    assert set(light["optional-dependencies"]["arrays"]) <= set(whole["dependencies"])
    assert (light["license"], light["requires-python"]) == (whole["license"], whole["requires-python"])
