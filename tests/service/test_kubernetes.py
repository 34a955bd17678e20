"""`deploy/kubernetes`: valid by the published schemas, and in agreement with itself and with the service."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from steval.cli.app import COMMANDS, app
from steval.service.routes import ROUTES
from steval.service.settings import PREFIX, ServiceSettings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASES = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml"))
FOREIGN = {"ScaledObject", "RayJob"}
"""Kinds of extensions, which no published schema of Kubernetes knows."""


def resources(base: str) -> list[dict[str, Any]]:
    """The objects of a base's own files, the kustomization left out."""
    kustomization = yaml.safe_load((KUBERNETES / base / "kustomization.yaml").read_text())
    files = [KUBERNETES / base / name for name in kustomization["resources"] if name.endswith(".yaml")]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def one(base: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in resources(base) if document["kind"] == kind]
    return found


def pods() -> list[dict[str, Any]]:
    documents = [document for base in BASES for document in resources(base)]
    templates = [document["spec"]["template"] for document in documents if document["kind"] in ("Deployment", "Job")]
    for cluster in (one["spec"]["rayClusterSpec"] for one in documents if one["kind"] == "RayJob"):
        templates += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [template["spec"] for template in templates]


def patched(base: str, ending: str) -> list[Any]:
    """What the patches of an overlay put at places that end so."""
    kustomization = yaml.safe_load((KUBERNETES / base / "kustomization.yaml").read_text())
    operations = [yaml.safe_load(patch["patch"]) for patch in kustomization.get("patches", ()) if "target" in patch]
    return [one["value"] for each in operations for one in each if one["path"].endswith(ending)]


def commands() -> list[list[str]]:
    """What containers run, a steval command first; what starts it as several processes is left out."""
    found = [container["args"] for pod in pods() for container in pod["containers"] if "args" in container]
    found += [words for base in BASES for words in patched(base, "/args")]
    found += [one("ray", "RayJob")["spec"]["entrypoint"].split()]
    return [words[words.index("steval") + 1 :] if "steval" in words else words for words in found]


def built(base: str) -> dict[str, dict[str, Any]]:
    """The objects that kustomize makes, by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / base)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


def test_every_file_belongs_to_a_kustomization():
    named = {
        (KUBERNETES / base / name).resolve()
        for base in BASES
        for name in yaml.safe_load((KUBERNETES / base / "kustomization.yaml").read_text())["resources"]
    }
    files = {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files <= named
    assert {path for path in named if path.suffix == ".yaml"} == files
    assert all(path.exists() for path in named)


@pytest.mark.parametrize("base", BASES)
def test_objects_are_valid_by_the_published_schemas(base):
    validate = pytest.importorskip("kubernetes_validate")
    for document in resources(base):
        if document["kind"] not in FOREIGN:
            validate.validate(document, validate.latest_version(), strict=True)


@pytest.mark.parametrize("base", BASES)
def test_kustomize_builds_each_base_into_valid_objects(base):
    made = built(base)
    if base == "serve-gpu":
        (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
        assert container["image"] == "steval:cuda"
        assert {"STEVAL_DEVICE", "STEVAL_MODELS"} <= {variable["name"] for variable in container["env"]}
    assert ("HorizontalPodAutoscaler" in made) == (base in ("serve", "serve-gpu"))
    validate = pytest.importorskip("kubernetes_validate")
    for kind, document in made.items():
        if kind not in FOREIGN:
            validate.validate(document, validate.latest_version(), strict=True)


@pytest.mark.parametrize("pod", pods())
def test_pods_are_not_root_write_only_where_they_may_and_mount_what_they_name(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "memory" in container["resources"]["requests"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_what_a_pod_runs_is_a_command_of_ours_with_options_that_exist(words):
    command, *rest = words
    assert command in COMMANDS
    known = {option for one in typer.main.get_command(app).commands[command].params for option in one.opts}
    assert {word for word in rest if word.startswith("-")} <= known


@pytest.mark.parametrize("base", ["finetune-gpus", "finetune-nodes"])
def test_several_processes_of_a_fine_tuning_find_their_gpus_and_each_other(base):
    made = built(base)
    job = made["Job"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(word.split("=", 1) for word in container["args"] if word.startswith("--") and "=" in word)
    assert options["--nproc-per-node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    settings = dict(word.split("=") for word in container["args"] if word.startswith("compute."))
    if base == "finetune-gpus":
        assert settings == {}
        return
    assert settings == {"compute.num_nodes": options["--nnodes"], "compute.devices": options["--nproc-per-node"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(options["--nnodes"])
    service = made["Service"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert options["--rdzv-endpoint"] == f"{first}:{service['spec']['ports'][0]['port']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"  # each pod has its own name
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]


def test_rays_head_and_workers_see_the_same_files_and_the_pinned_ray():
    cluster = one("ray", "RayJob")["spec"]["rayClusterSpec"]
    pins = (KUBERNETES.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    head, workers = (group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    for place in ("volumes", "securityContext"):
        assert head[place] == workers[place]
    (first,), (other,) = head["containers"], workers["containers"]
    for same in ("image", "env", "volumeMounts"):
        assert first[same] == other[same]
    on_gpus = built("ray-gpu")["RayJob"]["spec"]["rayClusterSpec"]
    (worker,) = on_gpus["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (
        worker["image"] == on_gpus["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == "steval:ray-cuda"
    )


def test_variables_of_the_service_are_settings_and_lie_on_volumes():
    (container,) = one("serve", "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert {name.removeprefix(PREFIX).lower() for name in variables} <= set(ServiceSettings.model_fields)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    places = [value for value in variables.values() if value.startswith("/")]
    assert [place for place in places if not any(place.startswith(mount) for mount in mounts)] == []


def test_selectors_ports_and_names_agree():
    deployment = one("serve", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 3000}
    service = one("serve", "Service")
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        one("serve", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("serve", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    targets = [port["targetPort"] for port in service["spec"]["ports"]]
    targets += [port["port"] for rule in one("serve", "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert set(targets) <= set(ports)
    scaled = [one("serve", "HorizontalPodAutoscaler"), one("serve-keda", "ScaledObject")]
    assert {thing["spec"]["scaleTargetRef"]["name"] for thing in scaled} == {deployment["metadata"]["name"]}


def test_probes_ask_addresses_that_need_no_key_and_stopping_leaves_time():
    pod = one("serve", "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    for path in paths.values():
        route = ROUTES.find(path)
        assert route is not None
        assert route.public
    (shutdown,) = [
        parameter.default
        for parameter in typer.main.get_command(app).commands["serve"].params
        if "--shutdown-seconds" in parameter.opts
    ]
    assert pod["terminationGracePeriodSeconds"] > shutdown + container["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_what_keda_asks_prometheus_is_exported():
    from prometheus_client import CollectorRegistry

    from steval.service.http.telemetry import ServiceMetrics

    registry = CollectorRegistry()
    ServiceMetrics(registry)
    known = {family.name for family in registry.collect()}
    queries = [
        trigger["metadata"].get("query", "") for trigger in one("serve-keda", "ScaledObject")["spec"]["triggers"]
    ]
    assert (
        set(re.findall(r"steval_[a-z_]+", " ".join(queries))) == {"steval_queued_cells", "steval_waiting_jobs"} & known
    )
