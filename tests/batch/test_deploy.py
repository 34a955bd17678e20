"""What can be tried of `deploy/` without a container engine: entry point, scripts, pins, and the bento's own files."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from steval.batch.settings import BatchManifest
from steval.cli.app import COMMANDS
from support.batch_cases import write_manifest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def fake_path(tmp_path: Path) -> str:
    """A PATH on which `steval` prints its arguments, one a line."""
    script = tmp_path / "bin" / "steval"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n')
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def enter(path: str, *arguments: str, **environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, str(DEPLOY / "entrypoint.py"), *arguments],
        env={"PATH": path, "HOME": str(Path(path.split(":")[0]).parent), **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.split("\n")[:-1]


def test_the_entry_point_serves_on_all_addresses(fake_path: str):
    base = ["--host", "0.0.0.0", "--port", "3000"]
    assert enter(fake_path, "serve", "/models/m.safetensors") == ["serve", *base, "/models/m.safetensors"]
    assert enter(fake_path, STEVAL_CHECKPOINT="/m.safetensors") == ["serve", "/m.safetensors", *base]
    found = enter(fake_path, "serve", "--workers", "2", STEVAL_CHECKPOINT="/m", STEVAL_NO_AUTH="true", PORT="80")
    assert found == ["serve", "/m", "--host", "0.0.0.0", "--port", "80", "--no-auth", "--workers", "2"]
    assert enter(fake_path, "serve", "/m", STEVAL_API_KEY_FILE="/k")[-3:] == ["--api-key-file", "/k", "/m"]


def test_the_entry_point_runs_every_command_and_any_other(fake_path: str):
    for command in COMMANDS:
        if command != "serve":
            assert enter(fake_path, command, "a b", "--json") == [command, "a b", "--json"]
    assert enter(fake_path) == ["serve", "--host", "0.0.0.0", "--port", "3000"]
    assert enter(fake_path, "--version") == ["--version"]
    assert enter(fake_path, "echo", "x") == ["x"]


def test_serving_needs_no_home_that_can_be_written(tmp_path: Path):
    script = tmp_path / "bin" / "steval"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "$BENTOML_HOME"\n')
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    own = tmp_path / "own"
    assert enter(path, "serve", BENTOML_HOME=str(own)) == [str(own)]
    for environment in ({"BENTOML_HOME": "/proc/nowhere"}, {"HOME": "/proc"}, {"HOME": ""}):
        (found,) = enter(path, "serve", TMPDIR=str(tmp_path), **environment)
        assert Path(found).is_dir() and Path(found).parent == tmp_path


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_whether_the_service_is_ready(status: int):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request).start()
        command = [sys.executable, str(DEPLOY / "entrypoint.py"), "healthy"]
        result = subprocess.run(command, env={"PORT": str(server.server_port)}, capture_output=True, text=True)
    assert result.returncode == (status != 200)
    assert ("503" in result.stderr) == (status == 503) and "Traceback" not in result.stderr


def test_a_program_that_is_not_there_is_one_sentence():
    result = subprocess.run(
        [sys.executable, str(DEPLOY / "entrypoint.py"), "scor"], env={}, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("scor: No such file or directory; the first argument is a steval command (demo,")


def test_the_slurm_script_gives_each_array_task_its_share(case: Path, tmp_path: Path):
    path = write_manifest(case, "slurm")
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_CPUS_PER_TASK": "3", "SLURM_MEM_PER_NODE": "8192",
    }  # fmt: skip
    result = subprocess.run(
        ["bash", str(DEPLOY / "slurm.sh"), str(path), "--dry-run"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "a__synthetic__all" in result.stdout and "1 job," in result.stdout and "on 3 workers" in result.stdout
    assert "a__packaged__all" not in result.stdout


def test_image_pins_are_those_of_the_constraints():
    pins, wanted = (
        {line.split("==")[0].lower(): line for line in (ROOT / name).read_text().splitlines() if "==" in line}
        for name in ("constraints.txt", "deploy/requirements.txt")
    )
    different = [line for name, line in wanted.items() if name in pins and pins[name] != line]
    assert not different
    assert {"torch", "bentoml", "anndata", "lightning", "typer"} <= wanted.keys()
    assert not {"pytest", "ruff", "hypothesis"} & wanted.keys()


def test_what_the_images_copy_exists():
    containerfile = (DEPLOY / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", containerfile, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    bentofile = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    for name in bentofile["include"]:
        assert (ROOT / name.strip("/").removesuffix("/**")).exists(), name
    assert f"EXPOSE {3000}" in containerfile and "USER 1034" in containerfile and "HEALTHCHECK" in containerfile


def test_kubernetes_job_is_non_root_and_knows_the_exit_codes():
    job = yaml.safe_load((DEPLOY / "kubernetes" / "batch" / "job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 5]


def test_the_manifest_of_the_docs_is_one():
    text = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```yaml\n(# night.yaml.*?)```", text, re.DOTALL)
    manifest = BatchManifest.parse(yaml.safe_load(block))
    assert [request.do for request in manifest.requests] == ["both", "predict", "score"]
    assert manifest.data[1].recorded


@pytest.mark.slow
def test_bentoml_builds_and_its_image_uses_our_entry_point(tmp_path: Path):
    pytest.importorskip("bentoml", reason="BentoML is not installed (steval[serve])")
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run(
        [sys.executable, "-m", "bentoml", "build", str(ROOT)],
        env=environment,
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    (bento,) = [path.parent for path in tmp_path.glob("bentos/steval/*/bento.yaml")]
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert dockerfile.rstrip().endswith('CMD ["serve"]')
    assert 'ENTRYPOINT ["python", "/home/bentoml/bento/src/deploy/entrypoint.py"]' in dockerfile
    assert "USER bentoml" in dockerfile and "HEALTHCHECK" in dockerfile
    assert (bento / "src" / "deploy" / "entrypoint.py").is_file()
    assert not list(bento.rglob("*.safetensors"))
