"""The scripts that run while an image is built, on small trees of their own: what is taken out, what is listed, what is mounted."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_slimming_takes_tests_headers_and_tools_and_nothing_that_runs(tmp_path, capsys):
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    gone = [
        *(
            "pandas/tests/a.py",
            "scipy/sparse/tests/data/b.npz",
            "torch/test/c",
            "torch/include/d.h",
            "torch/bin/protoc",
        ),
        *("torch/lib/e.a", "other/f.pxd"),
    ]
    kept = [
        *(
            "pandas/core/a.py",
            "numpy/testing/b.py",
            "other/tests/c.py",
            "torch/bin/torch_shm_manager",
            "torch/lib/d.so",
        ),
        *("torch/testing/e.py", "pandas-1.dist-info/licenses/LICENSE"),
    ]
    for name in (*gone, *kept):
        write(packages / name, "12345")
    script("slim").main(tmp_path)
    assert [name for name in gone if (packages / name).exists()] == []
    assert [name for name in kept if not (packages / name).exists()] == []
    assert capsys.readouterr().out == "0 MB of tests, headers and build tools taken out\n"


def test_debian_packages_are_components_with_their_licences(tmp_path):
    status = write(
        tmp_path / "status",
        "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:5.2+b1\nDescription: shell\n more: of it\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n",
    )
    write(
        tmp_path / "doc" / "bash" / "copyright",
        "Format: https://x/1.0/\n\nFiles: *\nLicense: GPL-3+\n\nFiles: d\nLicense: GFDL\n",
    )
    inventory = script("inventory")
    (found,) = inventory.debian_packages(status, tmp_path / "doc")
    assert (found["name"], found["version"]) == ("bash", "1:5.2+b1")
    assert found["purl"] == "pkg:deb/debian/bash@1%3A5.2%2Bb1?arch=amd64"
    assert inventory.licence_of(found) == "GFDL | GPL-3+"
    assert inventory.debian_packages(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("licenses", "told"),
    [
        pytest.param([{"expression": "MIT OR Apache-2.0"}], "MIT OR Apache-2.0", id="expression"),
        pytest.param([{"license": {"id": "MIT"}}, {"license": {"name": "MIT"}}], "MIT", id="twice"),
        pytest.param([], "not stated; see its copyright file", id="none"),
    ],
)
def test_a_licence_is_what_the_component_states(licenses, told):
    assert script("inventory").licence_of({"name": "x", "licenses": licenses}) == told


def test_pip_and_uv_in_a_build_look_where_this_machine_looks(tmp_path, monkeypatch, capsys):
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    write(
        tmp_path / "pip.conf.given",
        f"[global]\nfind-links = {wheels}\nextra-index-url = file://{index}\n    https://wheels.example\n",
    )
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf.given"))
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "77")
    script("pip_inside").main(tmp_path)
    written = (tmp_path / "pip.conf").read_text()
    assert f"find-links = {wheels}\n" in written and "default-timeout = 77\n" in written
    assert f"extra-index-url = file://{index} https://wheels.example\n" in written
    assert f'extra-index-url = ["file://{index}", "https://wheels.example"]' in (tmp_path / "uv.toml").read_text()
    mounts = capsys.readouterr().out.splitlines()
    assert {f"{wheels} {wheels}", f"{index.parent} {index.parent}", f"{tmp_path}/pip.conf /etc/pip.conf"} <= set(mounts)


def stages() -> dict[str, str]:
    """Text of each stage of the Containerfile, by name."""
    text = (DEPLOY / "Containerfile").read_text()
    parts = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def requirements(lines: list[str]) -> set[str]:
    return {re.split(r"[\s<>=\[;]", line)[0].lower() for line in lines if line and not line.startswith("#")}


def test_the_image_that_serves_is_the_base_and_serve_without_training_and_what_only_prepares():
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    wanted = requirements((DEPLOY / "serve.txt").read_text().splitlines())
    extras = project["optional-dependencies"]
    base = requirements([*project["dependencies"], *extras["serve"], *extras["tracing"]])
    assert wanted == base - {"cell-eval", "pdex", "scanpy"}
    assert "-c constraints.txt -r deploy/serve.txt" in stages()["build-serve"]


def test_the_full_image_has_extras_that_there_are():
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", stages()["build-full"], re.MULTILINE)
    assert (
        set(extras.split(","))
        == {"train", "serve", "hub", "sweep", "tracing"}
        <= project["optional-dependencies"].keys()
    )


def test_each_image_takes_its_own_packages_and_a_wrong_torch_ends_the_build_of_both():
    found = stages()
    assert [name for name in found if "COPY --from" in found[name]] == ["serve", "full"]
    for name in ("serve", "full"):
        assert found[name].strip() == f"COPY --from=build-{name} /opt/steval /opt/steval"
        assert f"FROM build-torch AS build-{name}\n" in (DEPLOY / "Containerfile").read_text()
        assert "inventory.py /opt/steval" in found[f"build-{name}"] and "slim.py /opt/steval" in found[f"build-{name}"]
    assert 'check_torch.py "$ACCELERATOR"' in found["build-torch"]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_shell(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_step_of_a_build_is_named_before_anything_is_done(tmp_path):
    command = ["bash", str(DEPLOY / "build_without_daemon.sh"), str(tmp_path / "work"), "serve", "sevre"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "work").exists()
    assert done.stderr == "no step sevre; steps are base serve full cuda try bento export\n"
