"""A checkpoint as an arc-state run directory: the tensors that its loader asks for, plain pickles, and the same bytes back."""

import json
import pickletools
import re
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.arc import ArcModel, read_arc
from steval.checkpoints.conversion import ConversionOptions, convert_arc
from steval.checkpoints.export.arc_arguments import require_expressible
from steval.checkpoints.export.arc_run import write_arc_run
from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.safe_load import load_foreign
from steval.checkpoints.store import Checkpoint, load_checkpoint, save_checkpoint
from steval.cli.app import app
from steval.data.columns import Columns
from steval.data.effects.decoding import DecodingSettings
from steval.errors import CheckpointError
from steval.model.config import ModelConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FORWARD = sorted((GOLDEN / "forward").glob("*.ckpt"))
RECORDED_WITH = {"llama_causal_emb_decoder": "causal-rope"}
TABLES = ("embed_tokens", "wte", "wpe")
PLAIN_PICKLE = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage",
}  # fmt: skip


def as_checkpoint(model: ArcModel) -> Checkpoint:
    config = model.config
    names = ["non-targeting", *(f"P{number}" for number in range(1, config.pert_dim))]
    has_genes = config.gene_decoder is not None or config.input_is_genes
    manifest = Manifest(
        made_by="a test",
        model=config,
        input_genes=tuple(f"I{i}" for i in range(config.input_dim)) if config.input_is_genes else None,
        output_genes=tuple(f"O{i}" for i in range(config.prediction_dim)) if has_genes else None,
        scale="lognorm" if has_genes else "embedding",
        perturbations=tuple(PerturbationEntry(name=name) for name in names),
        columns=Columns(perturbation="gene", cell_type="line"),
        cell_types=("A",),
        batches=tuple(f"b{i}" for i in range(config.batch_dim or 1)),
    )
    return Checkpoint(model.checkpoint_path, manifest, model.weights, torch.eye(config.pert_dim), None, digest="")


def pickled_names(path: Path) -> set[str]:
    """What the pickles of a file name, as `module name`."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    else:
        data = path.read_bytes()
    found, strings = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(argument)
        elif opcode.name == "STACK_GLOBAL":
            found.add(" ".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


@pytest.mark.parametrize("path", FORWARD, ids=lambda path: path.stem)
def test_a_golden_model_goes_back_as_what_arc_states_loader_asks_for(tmp_path, path):
    model = read_arc(path, RECORDED_WITH.get(path.stem))
    write_arc_run(as_checkpoint(model), tmp_path / "run")
    original, written = load_foreign(path), load_foreign(tmp_path / "run" / "checkpoints" / "final.ckpt")
    shapes = [
        {
            name: tuple(tensor.shape)
            for name, tensor in content["state_dict"].items()
            if not any(t in name for t in TABLES)
        }
        for content in (original, written)
    ]
    assert shapes[0] == shapes[1]
    assert {n for n in original["state_dict"] if any(t in n for t in TABLES)} == {
        n for n in written["state_dict"] if any(t in n for t in TABLES)
    }
    # the arguments that shape the network, as the file had them
    skipped = {"lr", "gene_names", "transformer_backbone_kwargs", "gene_dim", "hvg_dim", "batch_dim", "init_from"}
    arguments, ours = original["hyper_parameters"], written["hyper_parameters"]
    assert {key: ours[key] for key in arguments.keys() & ours.keys() - skipped} == {
        key: arguments[key] for key in arguments.keys() & ours.keys() - skipped
    }
    assert ("decoder_cfg" in ours) == (model.config.gene_decoder is not None)
    back = read_arc(tmp_path / "run", None if model.config.backbone.kind == "llama" else "causal")
    assert back.config == model.config
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in model.weights.items())
    assert list(back.vocabulary.features) == ["non-targeting", *(f"P{i}" for i in range(1, model.config.pert_dim))]
    assert (back.vocabulary.columns.perturbation, back.vocabulary.columns.cell_type) == ("gene", "line")


def test_its_pickles_name_tensors_and_nothing_else(tmp_path):
    write_arc_run(as_checkpoint(read_arc(FORWARD[-1])), tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".ckpt", ".pt", ".torch", ".pkl")]
    assert len(files) == 5
    for path in files:
        assert pickled_names(path) <= PLAIN_PICKLE, path
        if path.suffix != ".pkl":
            torch.load(path, weights_only=True)


def test_steval_to_arc_to_steval_is_the_same_bytes(tmp_path):
    convert_arc(GOLDEN / "arc_run", tmp_path / "first.safetensors", ConversionOptions(target_sum=10_000))
    first = load_checkpoint(tmp_path / "first.safetensors")
    write_arc_run(first, tmp_path / "run")
    convert_arc(tmp_path / "run", tmp_path / "second.safetensors", ConversionOptions(target_sum=10_000))
    second = load_checkpoint(tmp_path / "second.safetensors")
    assert second.manifest.tensors == first.manifest.tensors
    differing = {key for key, value in first.manifest.as_dict().items() if second.manifest.as_dict()[key] != value} - {
        "created"
    }
    assert differing == {"training"}  # its configuration is the directory's now


def config_of(**changes) -> ModelConfig:
    backbone = {"kind": "llama", "hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2}
    backbone |= {"num_key_value_heads": 2, "head_dim": 8}
    if changes.pop("gpt2", False):
        backbone = {"kind": "gpt2", "hidden_size": 16, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    return ModelConfig.parse(
        {"input_dim": 16, "output_dim": 16, "pert_dim": 4, "hidden_dim": 16, "backbone": backbone, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param({"attention": "causal", "head": "plain"}, ("attention 'causal'", "head 'plain'"), id="both"),
        pytest.param({"gpt2": True}, ("attention 'bidirectional'.*gpt2.*causal",), id="gpt2"),
    ],
)
def test_what_arc_state_cannot_express_is_refused_by_name(changes, names):
    with pytest.raises(CheckpointError) as raised:
        require_expressible(config_of(**changes))
    assert len(raised.value.problems) == len(names)
    assert all(re.search(name, str(raised.value)) for name in names)
    require_expressible(config_of())


def test_weights_in_half_precision_are_refused(tmp_path):
    checkpoint = as_checkpoint(read_arc(FORWARD[-1]))
    half = {name: tensor.half() for name, tensor in checkpoint.weights.items()}
    narrow = Checkpoint(checkpoint.path, checkpoint.manifest, half, checkpoint.features, None, digest="")
    with pytest.raises(CheckpointError, match="weights are float16"):
        write_arc_run(narrow, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_from_the_command_line_with_what_is_left_out_said(tmp_path):
    checkpoint = as_checkpoint(read_arc(GOLDEN / "forward" / "llama_causal_emb_decoder.ckpt"))
    manifest = checkpoint.manifest.model_copy(
        update={
            "licence": "CC0",
            "model": checkpoint.manifest.model.model_copy(update={"attention": "bidirectional"}),
            "decoding": DecodingSettings(kind="carried", network_weight=1.0),
        }
    )
    source = tmp_path / "model.safetensors"
    save_checkpoint(source, manifest=manifest, weights=checkpoint.weights, features=checkpoint.features)
    code, text, errors = run("convert", source, "--to", "arc", "-o", tmp_path / "run", "--json")
    assert code == 0, errors
    told = json.loads(text)
    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == {
        Path(name).name for name in told["files"]
    }
    for part in ("decoding carried", "licence 'CC0'", "the scale of the data (lognorm)"):
        assert any(part in left for left in told["left_out"]), part
    assert told["command"].endswith("--pert-col gene --embed-key X_state")
    code, _, errors = run("convert", source, "--to", "arc", "-o", tmp_path / "run")
    assert (code, "not empty" in errors) == (2, True)
    code, _, errors = run("convert", source, "--to", "arc", "-o", tmp_path / "other", "--target-sum", 10)
    assert (code, "--target-sum" in errors) == (2, True)
    code, _, errors = run("convert", source, "--to", "onnx", "-o", tmp_path / "other")
    assert (code, "steval or arc" in errors) == (2, True)
    code, _, errors = run("convert", GOLDEN / "arc_run", "--to", "arc", "-o", tmp_path / "other")
    assert (code, "steval convert" in errors) == (3, True)
    assert not (tmp_path / "other").exists()
