"""arc-state model → steval checkpoint: the same numbers, every name kept, nothing guessed."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest
import torch

from steval.checkpoints.arc import read_arc
from steval.checkpoints.conversion import ConversionOptions, convert_arc, plan_conversion
from steval.checkpoints.store import load_checkpoint
from steval.errors import CheckpointError, ConfigError, DataError
from steval.model.network import StateTransition

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FORWARD = GOLDEN / "forward"


def one_hot_map(tmp_path: Path, size: int, control: str = "non-targeting") -> Path:
    path = tmp_path / "map.pt"
    names = [f"P{i}" for i in range(size - 1)] + [control]
    torch.save(dict(zip(names, torch.eye(size), strict=True)), path)
    return path


def gene_file(tmp_path: Path, size: int, name: str = "genes.txt") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(f"G{i}" for i in range(size)))
    return path


def test_a_converted_run_computes_its_own_numbers(tmp_path):
    out = tmp_path / "model.safetensors"
    report = convert_arc(GOLDEN / "arc_run", out, ConversionOptions(target_sum=10_000, licence="CC0-1.0"))
    checkpoint = load_checkpoint(out)
    manifest = checkpoint.manifest
    original = read_arc(GOLDEN / "arc_run")
    network = StateTransition(original.config).eval()
    network.load_state_dict(original.weights)
    cells = torch.rand(2, 16, 1000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, features in original.vocabulary.features.items():
            expected = network(cells, features.expand(2, -1)).output_BSG
            found = checkpoint.network()(cells, checkpoint.feature_rows([name]).expand(2, -1)).output_BSG
            assert torch.equal(found, expected)
    assert manifest.input_genes == manifest.output_genes == original.vocabulary.genes
    assert (manifest.scale, manifest.target_sum, manifest.licence) == ("lognorm", 10_000, "CC0-1.0")
    assert (manifest.batches, manifest.cell_types) == (original.vocabulary.batches, ("H1",))
    assert manifest.training.step == 12
    assert all(entry.trained for entry in manifest.perturbations)
    assert checkpoint.controls is None
    assert report.dropped == ("transformer_backbone.embed_tokens.weight",)
    assert not any("target_sum" in note for note in manifest.notes)
    assert out.stat().st_size < 2_000_000  # the 32,000-row table is gone


@pytest.mark.parametrize("path", sorted(FORWARD.glob("*.ckpt")), ids=lambda path: path.stem)
def test_bare_checkpoints_convert_with_their_names_given(tmp_path, path):
    model = read_arc(path)
    config = model.config
    sizes = {config.input_dim} if config.input_is_genes else set()
    sizes |= {config.gene_decoder.gene_dim} if config.gene_decoder else set()
    options = ConversionOptions(
        genes=tuple(gene_file(tmp_path, size, f"{size}.txt") for size in sizes),
        perturbation_map=one_hot_map(tmp_path, config.pert_dim),
    )
    convert_arc(path, tmp_path / "out.safetensors", options)
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in model.weights.items())
    if config.batch_dim:
        assert checkpoint.manifest.batches == tuple(map(str, range(config.batch_dim)))
    assert (checkpoint.manifest.input_genes is None) == (not config.input_is_genes)


def test_gene_and_perturbation_names_are_not_guessed(tmp_path):
    path, out = FORWARD / "llama_bidir_all_x.ckpt", tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match=r"names no perturbations.*--perturbation-map") as raised:
        convert_arc(path, out)
    assert raised.value.exit_code == 2
    options = {"perturbation_map": one_hot_map(tmp_path, 7)}
    with pytest.raises(ConfigError, match=r"names of the model's 60 genes.*--genes"):
        convert_arc(path, out, ConversionOptions(**options))
    with pytest.raises(ConfigError, match="found 59 in"):
        convert_arc(path, out, ConversionOptions(**options, genes=(gene_file(tmp_path, 59),)))
    two = (gene_file(tmp_path, 60), tmp_path / "other.csv")
    two[1].write_text("\n".join(f"H{i}" for i in range(60)))
    with pytest.raises(ConfigError, match="different gene lists of length 60"):
        convert_arc(path, out, ConversionOptions(**options, genes=two))
    with pytest.raises(DataError, match="more than once"):
        two[0].write_text("G\n" * 60)
        convert_arc(path, out, ConversionOptions(**options, genes=two[:1]))
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        convert_arc(GOLDEN / "arc_run", tmp_path / "model.ckpt")
    assert not out.exists()


@pytest.mark.parametrize("form", ["txt", "csv-with-header", "h5ad"])
def test_gene_names_from_every_kind_of_file(tmp_path, form):
    names = [f"G{i}" for i in range(60)]
    path = tmp_path / f"genes.{form.partition('-')[0]}"
    if form == "h5ad":
        cells = ad.AnnData(np.ones((1, 60), dtype=np.float32))
        cells.var_names = names
        cells.write_h5ad(path)
    else:
        path.write_text("\n".join(["gene_name,id", *(f"{n},1" for n in names)] if form.startswith("csv") else names))
    options = ConversionOptions(genes=(path,), perturbation_map=one_hot_map(tmp_path, 7))
    conversion = plan_conversion(FORWARD / "llama_bidir_all_x.ckpt", options)
    assert conversion.manifest.input_genes == tuple(names)


def dense_run(tmp_path: Path, with_control: bool) -> tuple[Path, dict[str, torch.Tensor]]:
    """The golden run, its perturbations with features of length 6 that are not one-hot (as ESM2 features are)."""
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "arc_run", run)
    for path in [run, *run.rglob("*")]:
        path.chmod(0o755)
    rows = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    names = ["MED12", "SRC", "STAT1", "TET1", "TMSB4X"] + ["non-targeting"] * with_control
    features = dict(zip(names, rows, strict=False))
    torch.save(features, run / "pert_onehot_map.pt")
    return run, features


def test_a_control_missing_from_the_features_is_the_zero_vector(tmp_path):
    run, _ = dense_run(tmp_path, with_control=False)
    conversion = plan_conversion(run, ConversionOptions())
    assert conversion.manifest.perturbation_names[-1] == "non-targeting"
    assert not conversion.features[-1].any()
    assert "zero vector" in " ".join(conversion.manifest.notes)


@pytest.mark.parametrize("form", ["pt", "npz", "npz-matrix", "parquet-list", "parquet-columns"])
def test_features_of_unseen_perturbations_are_added_untrained(tmp_path, form):
    run, features = dense_run(tmp_path, with_control=True)
    extra = {"BRD4": torch.arange(6.0), "SRC": features["SRC"]}
    path = tmp_path / f"extra.{form.partition('-')[0]}"
    arrays = {name: vector.numpy() for name, vector in extra.items()}
    matrix = np.stack(list(arrays.values()))
    if form == "pt":
        torch.save(extra, path)
    elif form == "npz":
        np.savez_compressed(path, **arrays)
    elif form == "npz-matrix":
        np.savez(path, names=np.array(list(arrays)), features=matrix)
    elif form == "parquet-list":
        pl.DataFrame({"gene": list(arrays), "embedding": matrix.tolist()}).write_parquet(path)
    else:
        pl.DataFrame({"gene": list(arrays)} | {f"f{i}": matrix[:, i] for i in range(6)}).write_parquet(path)
    conversion = plan_conversion(run, ConversionOptions(perturbation_features=path))
    entries = {entry.name: entry.trained for entry in conversion.manifest.perturbations}
    assert entries["BRD4"] is False
    assert entries["SRC"] is True
    assert len(entries) == 7
    assert torch.equal(conversion.features[-1], torch.arange(6.0))


def _save(content):
    return lambda path: torch.save(content, path.with_suffix(".pt")) or path.with_suffix(".pt")


def _bomb(path):
    np.savez_compressed(path.with_suffix(".npz"), names=np.array(["a"]), features=np.zeros((1, 50_000_000)))
    return path.with_suffix(".npz")


def _object_array(path):
    np.savez(path.with_suffix(".npz"), a=np.array([{"x": 1}], dtype=object))
    return path.with_suffix(".npz")


def _text(path):
    path.with_suffix(".parquet").write_text("not parquet")
    return path.with_suffix(".parquet")


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        pytest.param(_save({"BRD4": torch.ones(7)}), ConfigError, "length 7, the model takes 6", id="length"),
        pytest.param(_save({"BRD4": torch.full((6,), torch.nan)}), CheckpointError, "NaN", id="nan"),
        pytest.param(_save({"SRC": torch.zeros(6)}), ConfigError, "disagrees with the model", id="other-features"),
        pytest.param(_bomb, CheckpointError, "zip bomb", id="bomb"),
        pytest.param(_object_array, CheckpointError, "plain numbers", id="pickled-array"),
        pytest.param(_text, CheckpointError, "Parquet", id="text"),
        pytest.param(lambda path: path.with_suffix(".csv"), ConfigError, "no such", id="missing"),
        pytest.param(lambda path: gene_file(path.parent, 3), ConfigError, "'.txt'", id="suffix"),
    ],
)
def test_feature_files_that_do_not_fit_are_refused(tmp_path, write, error, message):
    run, _ = dense_run(tmp_path, with_control=True)
    with pytest.raises(error, match=message):
        plan_conversion(run, ConversionOptions(perturbation_features=write(tmp_path / "extra")))


def test_one_hot_models_take_no_further_features(tmp_path):
    path = tmp_path / "extra.pt"
    torch.save({"BRD4": torch.ones(6)}, path)
    with pytest.raises(ConfigError, match="one-hot"):
        plan_conversion(GOLDEN / "arc_run", ConversionOptions(perturbation_features=path))


def test_unknown_scale_and_target_sum_are_said(tmp_path):
    notes = " ".join(plan_conversion(GOLDEN / "arc_run", ConversionOptions()).manifest.notes)
    assert "target_sum of the training data is unknown" in notes
    assert "scale lognorm: arc-state does not record it" in notes
    with pytest.raises(ConfigError, match="above 0"):
        plan_conversion(GOLDEN / "arc_run", ConversionOptions(target_sum=-1))
    with pytest.raises(ConfigError, match="counts or lognorm"):
        plan_conversion(GOLDEN / "arc_run", ConversionOptions(scale="tpm"))


def test_a_map_of_another_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not of one run"):
        plan_conversion(GOLDEN / "arc_run", ConversionOptions(perturbation_map=one_hot_map(tmp_path, 9)))
