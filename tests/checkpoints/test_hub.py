"""References to a hub against a local server that speaks its file interface: what is fetched, pinned, recorded, and refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest
import yaml
from typer.testing import CliRunner

from steval.checkpoints.hub.models import models_of
from steval.checkpoints.hub.repository import HubReference
from steval.checkpoints.location import local, locate_checkpoint, pinned_reference
from steval.checkpoints.store import load_checkpoint
from steval.checkpoints.weight_source import read_weight_source
from steval.cli.app import app
from steval.data.cells.record import read_record
from steval.errors import CheckpointError, ConfigError
from steval.service.settings import ServiceSettings, require_checkpoint
from support.adapters import write_adapter_to
from support.fake_hub import TOKEN, FakeHub, fake_hub, files_below, use_hub
from support.in_process import plan_of
from support.service_models import lognorm_cells, write_checkpoint

pytest.importorskip("huggingface_hub")
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
REPO = "lab/st"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "m.safetensors", lognorm_cells())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of its own for each test, with a cache of its own."""
    with fake_hub() as server:
        use_hub(monkeypatch, server, tmp_path)
        yield server


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def checkpoint_of(predictions: Path) -> str:
    return read_record(ad.read_h5ad(predictions).uns)["details"]["checkpoint"]


def test_a_file_is_fetched_once_and_named_by_its_commit(hub: FakeHub, checkpoint: Path):
    commit = hub.put(REPO, {"models/m.safetensors": checkpoint.read_bytes(), "README.md": b"# a card"})
    for reference in (
        f"hf://{REPO}@main/models/m.safetensors",
        Path(f"hf://{REPO}@main/models/m.safetensors"),
        f"hf://{REPO}",
    ):
        path = locate_checkpoint(reference)
        assert path.read_bytes() == checkpoint.read_bytes()
        assert pinned_reference(path) == f"hf://{REPO}@{commit}/models/m.safetensors"
    assert sum(one.startswith("GET /lab/st/resolve") for one in hub.asked) == 1
    hub.asked.clear()
    assert locate_checkpoint(f"hf://{REPO}@{commit}/models/m.safetensors") == path
    assert hub.asked == []  # a commit that is in the cache needs nobody
    assert pinned_reference(checkpoint) is None


def test_a_branch_that_moves_is_another_model_and_the_old_commit_stays(hub: FakeHub, checkpoint: Path, tmp_path: Path):
    first = hub.put(REPO, {"m.safetensors": checkpoint.read_bytes()})
    old = locate_checkpoint(f"hf://{REPO}@main/m.safetensors")
    other = write_checkpoint(tmp_path / "o.safetensors", lognorm_cells(), seed=5)
    second = hub.put(REPO, {"m.safetensors": other.read_bytes()})
    new = locate_checkpoint(f"hf://{REPO}@main/m.safetensors")
    assert (pinned_reference(old), pinned_reference(new)) == tuple(
        f"hf://{REPO}@{one}/m.safetensors" for one in (first, second)
    )
    assert (
        load_checkpoint(locate_checkpoint(f"hf://{REPO}@{first}/m.safetensors")).digest
        == load_checkpoint(checkpoint).digest
    )
    hub.revisions[REPO]["refs/pr/1"] = first
    assert locate_checkpoint(f"hf://{REPO}@refs%2Fpr%2F1/m.safetensors") == old


def test_every_output_names_the_commit(hub: FakeHub, checkpoint: Path, tmp_path: Path):
    adapter = write_adapter_to(checkpoint, tmp_path / "a.adapter.safetensors", seed=1)
    files = {"m.safetensors": checkpoint.read_bytes(), "a.adapter.safetensors": adapter.read_bytes()}
    commit = hub.put(REPO, files)
    given, pinned = f"hf://{REPO}@main", f"hf://{REPO}@{commit}"
    cells, out = tmp_path / "real.h5ad", tmp_path / "preds.h5ad"
    lognorm_cells().write_h5ad(cells)
    run("predict", f"{given}/m.safetensors", "-o", out, "--perturbations", "STAT1", "--cells", 8)
    assert checkpoint_of(out) == f"{pinned}/m.safetensors"
    run(
        "predict",
        given,
        "--adapter",
        f"{given}/a.adapter.safetensors",
        "-o",
        out,
        "--perturbations",
        "STAT1",
        "--cells",
        8,
    )
    assert checkpoint_of(out) == f"{pinned}/a.adapter.safetensors"
    assert f"{pinned}/m.safetensors" in run("inspect", f"{given}/m.safetensors", "--json")
    merged = tmp_path / "merged.safetensors"
    run("merge", given, f"{given}/a.adapter.safetensors", "-o", merged)
    assert load_checkpoint(merged).manifest.perturbation_names
    assert read_weight_source(Path(f"{given}/m.safetensors")).name.startswith(f"{pinned}/m.safetensors sha256:")
    scored = tmp_path / "score"
    options = ["--real", cells, "--profile", "minimal", "--metrics-only", "-o", scored]
    run("score", f"{given}/m.safetensors", cells, *options)
    assert f'"checkpoint": "{pinned}/m.safetensors"' in (scored / "score.json").read_text()


def test_a_batch_and_a_service_take_references_and_keep_the_commit(hub: FakeHub, checkpoint: Path, tmp_path: Path):
    commit = hub.put(REPO, {"m.safetensors": checkpoint.read_bytes()})
    lognorm_cells().write_h5ad(tmp_path / "real.h5ad")
    manifest = tmp_path / "b.yaml"
    manifest.write_text(yaml.safe_dump({"checkpoints": [f"hf://{REPO}@main/m.safetensors"], "data": ["real.h5ad"]}))
    (job,) = plan_of(manifest).jobs
    assert (job.checkpoint.place, job.checkpoint_name) == (f"hf://{REPO}@{commit}/m.safetensors", "m")
    settings = ServiceSettings(checkpoint=locate_checkpoint(f"hf://{REPO}@main/m.safetensors"))
    variables = settings.to_environment()
    assert variables["STEVAL_CHECKPOINT"] == f"hf://{REPO}@{commit}/m.safetensors"
    hub.asked.clear()
    assert require_checkpoint(ServiceSettings.from_environment(variables)) == settings.checkpoint
    assert hub.asked == []
    adapters = {"a": Path(f"hf://{REPO}@{commit}/a.adapter.safetensors"), "b": tmp_path / "real.h5ad"}
    variables = ServiceSettings(checkpoint=checkpoint, adapters=adapters).to_environment()
    assert ServiceSettings.from_environment(variables).adapters == adapters


def test_what_is_in_the_cache_needs_no_network(hub: FakeHub, checkpoint: Path, monkeypatch):
    from huggingface_hub import constants

    hub.put(REPO, {"m.safetensors": checkpoint.read_bytes(), "n.safetensors": b"other"})
    path = locate_checkpoint(f"hf://{REPO}@main/m.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert locate_checkpoint(f"hf://{REPO}@main/m.safetensors") == path
    assert locate_checkpoint(f"hf://{REPO}@main") == path  # the only model that the cache has
    for absent in (f"hf://{REPO}@main/n.safetensors", f"hf://{REPO}@v2/m.safetensors", "hf://lab/other/m.safetensors"):
        with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set, and the cache .* does not have it"):
            locate_checkpoint(absent)
    assert hub.asked == []


def test_without_a_network_the_message_says_so(hub: FakeHub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the hub cannot be reached, and the cache"):
        locate_checkpoint(f"hf://{REPO}@main/m.safetensors")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        pytest.param("hf://lab/none", "there is no repository lab/none, or it is private", id="no-repository"),
        pytest.param("hf://lab/secret", "or it is private: .* hf auth login, or set HF_TOKEN", id="private"),
        pytest.param("hf://lab/gated", "is gated: accept its terms", id="gated"),
        pytest.param(f"hf://{REPO}@v9/m.safetensors", f"{REPO} has no revision 'v9'", id="revision"),
        pytest.param(f"hf://{REPO}/x.safetensors", f"there is no such file in {REPO}", id="file"),
        pytest.param(f"hf://{REPO}/docs", f"there is no model there; {REPO} has: m.safetensors", id="directory"),
        pytest.param("hf://lab", "is no reference to a hub: write hf://owner/repo@revision/path", id="form"),
        pytest.param(f"hf://{REPO}/../../etc/passwd", "is no reference to a hub", id="dots"),
        pytest.param(f"hf://{REPO}@..%2F..%2F..%2Fx/m.safetensors", "is no reference to a hub", id="dots-in-revision"),
        pytest.param(f"hf://{REPO}@%2Fetc%2Fx/m.safetensors", "is no reference to a hub", id="revision-from-the-root"),
        pytest.param("hf://../../m.safetensors", "is no reference to a hub|the hub refused", id="dots-for-owner"),
    ],
)
def test_what_cannot_be_had_is_said_in_words(hub: FakeHub, reference: str, words: str):
    hub.put(REPO, {"m.safetensors": b"a", "docs/readme.md": b"b"})
    hub.put("lab/secret", {"m.safetensors": b"a"})
    hub.put("lab/gated", {"m.safetensors": b"a"})
    hub.private.add("lab/secret")
    hub.gated.add("lab/gated")
    with pytest.raises(CheckpointError, match=words):
        locate_checkpoint(reference)
    done = CliRunner().invoke(app, ["inspect", reference])
    assert done.exit_code == 3
    assert "Traceback" not in done.output


def test_a_file_that_came_damaged_is_refused_and_fetched_again(hub: FakeHub, checkpoint: Path):
    hub.put(REPO, {"m.safetensors": checkpoint.read_bytes()})
    hub.damaged.add("m.safetensors")
    with pytest.raises(CheckpointError, match="came damaged from the hub"):
        locate_checkpoint(f"hf://{REPO}/m.safetensors")
    hub.damaged.clear()
    assert locate_checkpoint(f"hf://{REPO}/m.safetensors").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("lie", "path", "words"),
    [
        pytest.param({"lies": {"X-Linked-Etag": '"../../../../outside"'}}, "/m.safetensors", "which is no digest", id="dots"),
        pytest.param({"lies": {"X-Linked-Etag": '"/tmp/outside"'}}, "/m.safetensors", "which is no digest", id="root"),
        pytest.param({"lies": {"X-Linked-Etag": '".."'}}, "/m.safetensors", "which is no digest", id="name-of-a-folder"),
        pytest.param({"lies": {"X-Linked-Etag": None, "ETag": None}}, "/m.safetensors", "called None", id="no-name"),
        pytest.param({"lies": {"X-Repo-Commit": "../../../.."}}, "/m.safetensors", "of the commit '../../../..'", id="commit"),
        pytest.param({"lies": {"X-Linked-Size": str(10**18)}}, "/m.safetensors", "and the disk of the cache", id="too-large"),
        pytest.param({"lies": {"X-Linked-Size": "-1"}}, "/m.safetensors", "its size is -1", id="less-than-nothing"),
        pytest.param({"lies": {"X-Linked-Etag": f'"{"0" * 64}"'}}, "/m.safetensors", "came damaged", id="digest"),
        pytest.param({"endless": True}, "/m.safetensors", "goes on sending: it is not fetched", id="endless"),
        pytest.param({"sha": "../../../outside"}, "/m.safetensors", "not that of a hub", id="settled-elsewhere"),
        pytest.param({"sha": 7}, "/m.safetensors", "not that of a hub", id="settled-to-a-number"),
        pytest.param({"raw": {"revision": b"<html>"}}, "/m.safetensors", "not that of a hub", id="page"),
        pytest.param({"raw": {"revision": b"[]"}}, "/m.safetensors", "not that of a hub", id="list"),
        pytest.param({"raw": {"tree": b'[{"path": 3}]'}}, "", "not that of a hub", id="listing"),
        pytest.param(
            {"raw": {"tree": b'[{"type": "file", "path": "../../../outside.safetensors", "size": 1, "oid": "0"}]'}},
            "", "not that of a hub", id="listed-outside",
        ),
    ],
)  # fmt: skip
def test_a_hub_that_lies_writes_nowhere_and_is_said_to(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, lie: dict, path: str, words: str
):
    hub.put(REPO, {"m.safetensors": checkpoint.read_bytes()})
    for name, value in lie.items():
        setattr(hub, name, value)
    before = set(tmp_path.parent.rglob("*"))
    done = CliRunner().invoke(app, ["inspect", f"hf://{REPO}@main{path}"])
    assert (done.exit_code, words in " ".join(done.output.split())) == (3, True), done.output
    assert "Traceback" not in done.output
    new = {one for one in set(tmp_path.parent.rglob("*")) - before if not one.is_relative_to(tmp_path / "cache")}
    assert new == set()
    assert not [one for one in (tmp_path / "cache").rglob("blobs/*") if one.is_file()]


def arc_files(prefix: str = "") -> dict[str, bytes]:
    """A run of arc-state as it is published: with results in a directory that is called like a checkpoint."""
    results = {f"{prefix}eval_best.ckpt/K562_{name}.csv": b"a,b\n" for name in ("results", "agg_results", "pred_de")}
    return files_below(GOLDEN / "arc_run", prefix) | results


def test_an_arc_state_run_at_the_root_is_converted_inspected_and_started_from(hub: FakeHub, tmp_path: Path):
    commit = hub.put("arc/ST-Tahoe", arc_files() | {"README.md": b"", "checkpoints/step=1.ckpt": b"not asked for"})
    given = "hf://arc/ST-Tahoe@main"
    with pytest.raises(CheckpointError, match=r"is a model of arc-state.*steval convert hf://arc/ST-Tahoe@main -o"):
        locate_checkpoint(given)
    directory = local(given)
    assert pinned_reference(directory) == f"hf://arc/ST-Tahoe@{commit}"
    assert not (directory / "checkpoints/step=1.ckpt").exists()
    run("convert", given, "-o", tmp_path / "ours.safetensors")
    run("convert", GOLDEN / "arc_run", "-o", tmp_path / "theirs.safetensors")
    ours, theirs = load_checkpoint(tmp_path / "ours.safetensors"), load_checkpoint(tmp_path / "theirs.safetensors")
    assert ours.manifest.tensors == theirs.manifest.tensors
    assert ours.manifest.perturbations == theirs.manifest.perturbations
    assert "arc" in run("inspect", given, "--json")
    assert read_weight_source(Path(given)).name.startswith(f"hf://arc/ST-Tahoe@{commit}/checkpoints/")
    (checkpoint,) = (directory / "checkpoints").glob("*.ckpt")
    assert local(f"{given}/checkpoints/{checkpoint.name}") == checkpoint


def test_several_runs_below_one_repository_are_listed_and_one_is_named(hub: FakeHub, checkpoint: Path, tmp_path: Path):
    places = ("fewshot/k562/", "fewshot/rpe1/", "zeroshot/k562/")
    files = {name: content for place in places for name, content in arc_files(place).items()}
    files |= {"ours/checkpoints/best-val.safetensors": checkpoint.read_bytes(), "ours/checkpoints/last.ckpt": b"state"}
    commit = hub.put("arc/ST-Replogle", files)
    with pytest.raises(CheckpointError, match="holds 4 models: name one of") as several:
        local("hf://arc/ST-Replogle")
    assert all(
        f"hf://arc/ST-Replogle@{commit}/{place.rstrip('/')}" in str(several.value) for place in (*places, "ours/")
    )
    assert not any(one.startswith("GET /arc/ST-Replogle/resolve") for one in hub.asked)
    with pytest.raises(CheckpointError, match="holds 2 models"):
        local("hf://arc/ST-Replogle/fewshot")
    assert local("hf://arc/ST-Replogle/fewshot/rpe1").name == "rpe1"
    assert locate_checkpoint("hf://arc/ST-Replogle/ours").read_bytes() == checkpoint.read_bytes()
    run("convert", "hf://arc/ST-Replogle/zeroshot/k562", "-o", tmp_path / "z.safetensors")


def test_a_run_without_gene_names_is_told_from_the_hub_as_from_the_disk(hub: FakeHub, tmp_path: Path):
    files = {name: content for name, content in arc_files().items() if name != "var_dims.pkl"}
    hub.put("arc/bare", files)
    shutil.copytree(GOLDEN / "arc_run", tmp_path / "bare", copy_function=shutil.copyfile)
    (tmp_path / "bare" / "var_dims.pkl").unlink()
    (tmp_path / "bare" / "eval_best.ckpt").mkdir()
    said = [
        CliRunner().invoke(app, ["convert", str(one), "-o", str(tmp_path / "o.safetensors")])
        for one in ("hf://arc/bare", tmp_path / "bare")
    ]
    assert said[0].exit_code == said[1].exit_code
    first, second = (one.output.splitlines()[-1].split()[:3] for one in said)
    assert first == second


def test_directories_of_results_are_no_checkpoints():
    names = [
        "eval_best.ckpt/a.csv",
        "k/eval_best.ckpt/b.csv",
        "k/checkpoints/best.ckpt",
        "x/y.adapter.safetensors",
        "m.safetensors",
    ]
    assert models_of(names) == ["k", "m.safetensors"]


def test_forms_of_references():
    assert HubReference.parse("hf://a/b") == HubReference("a/b", None, "")
    assert HubReference.parse("hf:/a/b@v1.0/c/d.safetensors") == HubReference("a/b", "v1.0", "c/d.safetensors")
    assert str(HubReference.parse("hf://a/b@refs%2Fpr%2F2/c")) == "hf://a/b@refs%2Fpr%2F2/c"


def test_a_checkpoint_is_pushed_with_a_card_of_its_own_words(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    licensed = write_checkpoint(tmp_path / "l.safetensors", lognorm_cells(), licence="CC-BY | 4.0", notes=("a note",))
    (reference,) = run("push", licensed, "hf://lab/new/models/l.safetensors").split()
    commit = hub.revisions["lab/new"]["main"]
    assert reference == f"hf://lab/new@{commit}/models/l.safetensors"
    assert locate_checkpoint(reference).read_bytes() == licensed.read_bytes()
    card = hub.repositories["lab/new"][commit]["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["license_name"]) == ("steval", "CC-BY | 4.0")
    for words in (
        "5 trained perturbations: MED12, SRC",
        "120 genes (lognorm, total 10000)",
        "CC-BY \\| 4.0",
        "- a note",
    ):
        assert words in card
    assert "Nothing is on record of how good" in card
    assert "steval predict hf://lab/new/models/l.safetensors" in card
    assert str(tmp_path) not in card
    hub.repositories["lab/new"][commit]["README.md"] = b"mine"
    assert "left as it is" in run("push", checkpoint, "hf://lab/new")
    files = hub.repositories["lab/new"][hub.revisions["lab/new"]["main"]]
    assert (files["README.md"], files["m.safetensors"]) == (b"mine", checkpoint.read_bytes())
    adapter = write_adapter_to(checkpoint, tmp_path / "a.adapter.safetensors", seed=1)
    run("push", adapter, "hf://lab/new", "--card", "--json")
    files = hub.repositories["lab/new"][hub.revisions["lab/new"]["main"]]
    assert files["a.adapter.safetensors"] == adapter.read_bytes()
    assert b"library_name" in files["README.md"]


def test_a_run_that_is_pushed_is_found_by_the_name_of_its_repository(
    hub: FakeHub, checkpoint: Path, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    best = tmp_path / "run" / "checkpoints" / "best-val.safetensors"
    best.parent.mkdir(parents=True)
    best.write_bytes(checkpoint.read_bytes())
    (reference,) = run("push", tmp_path / "run", "hf://lab/run").split()
    for given in (reference, "hf://lab/run"):
        assert locate_checkpoint(given).read_bytes() == best.read_bytes()


@pytest.mark.parametrize("name", ["my-best-val.safetensors", "a/my-best-val.safetensors"])
def test_a_file_whose_name_ends_as_a_run_s_best_is_a_file(hub: FakeHub, checkpoint: Path, name: str):
    hub.put(REPO, {name: checkpoint.read_bytes()})
    assert locate_checkpoint(f"hf://{REPO}").read_bytes() == checkpoint.read_bytes()


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    damaged = tmp_path / "d.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    for source, target, words in (
        (checkpoint, "hf://lab/new", "the hub does not let you: log in"),
        (checkpoint, "hf://lab/new/model.bin", "a file that ends in .safetensors"),
        (checkpoint, "hf://lab/new/x.adapter.safetensors", "an adapter keeps the ending"),
        (damaged, "hf://lab/new", "does not match its digest"),
    ):
        done = CliRunner().invoke(app, ["push", str(source), target])
        assert (done.exit_code in (2, 3), words in " ".join(done.output.split())) == (True, True), done.output
    assert not any(one.startswith("POST") and one != "POST /api/repos/create" for one in hub.asked)
    assert hub.repositories == {}


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"needs huggingface_hub.*'\.\[hub\]'"):
        locate_checkpoint("hf://a/b")


def test_a_real_process_reads_the_variables_of_the_hub(hub: FakeHub, checkpoint: Path, tmp_path: Path):
    commit = hub.put(REPO, {"m.safetensors": checkpoint.read_bytes()})
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "own")}
    command = [sys.executable, "-m", "steval", "inspect", f"hf://{REPO}@main/m.safetensors", "--json"]
    for offline in ("0", "1"):
        done = subprocess.run(command, env={**environment, "HF_HUB_OFFLINE": offline}, capture_output=True, text=True)
        assert (done.returncode, commit in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"HF_ENDPOINT": "http://[bad"}, "HF_ENDPOINT is no address of a hub"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "the proxy that the environment names"),
        ({"HF_TOKEN": f"{TOKEN}é"}, "HF_TOKEN holds characters outside ASCII"),
    ],
)
def test_an_environment_that_leads_to_no_hub_is_one_sentence(tmp_path: Path, changed: dict[str, str], words: str):
    """A process of its own: the hub's package reads the environment as it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("PROXY")}
    environment = {**kept, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), **changed}
    command = [sys.executable, "-m", "steval", "inspect", f"hf://{REPO}@main/m.safetensors"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("error: ") == 1, done.stderr
    assert TOKEN not in done.stderr + done.stdout
