"""Do random arc-state models of every option give the same numbers in steval? (1e-5 of the largest output, float32)

arc-state is no dependency: it runs as a black box in an environment of its own.

    python -m venv ARC && ARC/bin/pip install arc-state==0.11.1
    python benchmarks/parity_arc.py --arc-python ARC/bin/python --models 60

With `transformers==4.52.4` in that environment the models are GPT-2, else Llama. The script calls itself with that python
(`--generate DIR`): it builds models through arc-state's public class with random options and random weights, saves each as
Lightning would and what `predict_step` returns for padded full sets and one short unpadded set. steval then reads the files
as `steval convert` does, builds its own network and its arrangement for prediction, and compares.

The way back: each model is written again as `steval convert --to arc` writes it, arc-state loads that by its own strict loader
(`--reload DIR`), and what it predicts is compared with what it predicted from its own file. What
`state tx infer` predicts from such files: parity_arc_infer.py.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

RELATIVE = 1e-5
OUTPUTS = ("preds", "pert_cell_counts_preds", "confidence_pred")
SMALLEST_SCALE = 0.1
"""Outputs all smaller than this (a confidence near zero) are differences of numbers of size 1: compared on this scale."""


def random_arguments(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    """Constructor arguments of one model: every option drawn on its own, within what arc-state can build."""

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    set_size, genes, batches, hidden = int(rng.integers(4, 20)), int(rng.integers(24, 70)), int(rng.integers(2, 6)), 48
    heads, groups, head_dim = pick((4, 4, 12), (4, 2, 12), (4, 1, 20), (6, 3, 8), (2, 2, 32))
    batch_form = pick("none", "none", "encoder", "token")
    confidence = bool(pick(False, True))
    space, key = pick("gene", "all", "embedding"), pick(None, "X_hvg", "X_state")
    residual_decoder = bool(pick(False, True))
    decoder = {"latent_dim": genes, "gene_dim": int(rng.integers(20, 90)), "dropout": 0.1}
    decoder |= {"hidden_dims": pick([40], [40, 30, 20], [36, 36, 28, 28]), "residual_decoder": False}
    if residual_decoder:
        decoder |= {"hidden_dims": pick([36, 36], [36, 36, 28, 28], [40, 40, 30]), "residual_decoder": True}
    backbone = {
        "max_position_embeddings": set_size + 2,
        "hidden_size": hidden,
        "intermediate_size": int(pick(64, 144)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "use_cache": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "layer_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "rotary_dim": 0,
        "use_rotary_embeddings": False,
        "vocab_size": 64,
    }
    if kind == "GPT2":
        backbone = {"max_position_embeddings": set_size + 2, "n_positions": set_size + 2, "hidden_size": hidden}
        backbone |= {"n_embd": hidden, "n_layer": int(rng.integers(1, 4)), "n_head": pick(2, 4, 6), "use_cache": False}
        backbone |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "vocab_size": 64}
    regime = pick(True, True, False, None)
    if regime is not None:
        backbone["bidirectional_attention"] = regime
    return {
        "input_dim": genes,
        "output_dim": genes,
        "hidden_dim": hidden,
        "pert_dim": int(rng.integers(3, 20)),
        "batch_dim": batches,
        "gene_dim": genes,
        "hvg_dim": genes,
        "output_space": space,
        "embed_key": key,
        "predict_residual": bool(pick(True, True, False)),
        "use_basal_projection": bool(pick(True, False)),
        "n_encoder_layers": int(rng.integers(1, 5)),
        "n_decoder_layers": int(rng.integers(1, 5)),
        "activation": pick("gelu", "gelu", "relu", "leakyrelu", "elu", "selu"),
        "mask_attn": kind == "llama" and bool(pick(False, False, True)),
        "batch_encoder": batch_form == "encoder",
        "use_batch_token": batch_form == "token",
        "basal_mapping_strategy": "batch" if batch_form == "token" else "random",
        "confidence_token": confidence,
        "residual_decoder": residual_decoder,
        "decoder_cfg": pick(None, decoder),
        "cell_set_len": set_size,
        "extra_tokens": int(confidence) + int(batch_form == "token"),
        "transformer_backbone_key": kind,
        "transformer_backbone_kwargs": backbone,
        "distributional_loss": "energy",
        "loss": "energy",
        "blur": 0.05,
        "dropout": 0.1,
        "lr": 1e-4,
        "control_pert": "non-targeting",
        "softplus": bool(pick(True, False)),
    }


def generate(directory: Path, changes: Sequence[Mapping[str, Any]], seed: int) -> None:
    """Runs where arc-state is installed: writes `N.ckpt` and `N.npz` for a random model with each of `changes` to its arguments."""
    import transformers
    from state.tx.models.state_transition import StateTransitionPerturbationModel

    warnings.simplefilter("ignore")
    # With transformers 5 arc-state cannot build GPT-2; with 4.52 its Llama ignores mask_attn when bidirectional.
    kind = "GPT2" if int(transformers.__version__.split(".")[0]) < 5 else "llama"
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for number, changed in enumerate(changes):
        arguments = {**random_arguments(rng, kind), **changed}
        with contextlib.redirect_stdout(io.StringIO()):
            model = StateTransitionPerturbationModel(**arguments).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # GPT-2's position table is added, and kept at zero: that is what "without position embedding" is.
                if not name.endswith(".wpe.weight"):
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        size = arguments["cell_set_len"]
        rows = {
            "ctrl_cell_emb": 3 * torch.rand(2 * size, arguments["input_dim"], generator=generator),
            "pert_emb": torch.randn(2, arguments["pert_dim"], generator=generator).repeat_interleave(size, 0),
            "batch": torch.randint(arguments["batch_dim"], (2 * size,), generator=generator),
        }
        arrays = {f"in_{name}": value.numpy() for name, value in rows.items()} | predicted(model, rows)
        np.savez(directory / f"{number}.npz", **arrays)
        content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        torch.save({**content, "pytorch-lightning_version": "2.6.6"}, directory / f"{number}.ckpt")


def predicted(model: Any, rows: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What arc-state's `predict_step` says of two full padded sets and of a short one without padding."""
    size, arrays = model.cell_sentence_len, {}
    full, short = slice(None), slice(0, max(size - 3, 1))
    with torch.no_grad():
        for prefix, part, padded in (("full", full, True), ("short", short, False)):
            batch = {name: value[part] for name, value in rows.items()}
            names = ["p"] * len(batch["batch"])
            batch |= {"pert_name": names, "cell_type": names}
            answer = model.predict_step(batch, 0, padded=padded)
            for key in OUTPUTS:
                if answer.get(key) is not None:
                    arrays[f"{prefix}_{key}"] = answer[key].reshape(-1, answer[key].shape[-1]).numpy()
    return arrays


def reload(directory: Path) -> None:
    """Runs where arc-state is installed: writes `N.back.npz`, what it predicts from `N.back/`, as it predicted from `N.ckpt`."""
    from state.tx.models.state_transition import StateTransitionPerturbationModel

    warnings.simplefilter("ignore")
    for run in sorted(directory.glob("*.back")):
        with contextlib.redirect_stdout(io.StringIO()):
            model = StateTransitionPerturbationModel.load_from_checkpoint(run / "checkpoints" / "final.ckpt")
        with np.load(directory / f"{run.stem}.npz") as arrays:
            rows = {key.removeprefix("in_"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith("in_")}
        np.savez(directory / f"{run.stem}.back.npz", **predicted(model.to("cpu").eval(), rows))


def write_back(directory: Path) -> dict[str, str]:
    """Every `N.ckpt` as the run directory `N.back/`; why not, for those that arc-state 0.11.1 cannot express."""
    from steval.checkpoints.export.arc_run import write_arc_run
    from steval.errors import CheckpointError

    refused = {}
    for path in sorted(directory.glob("*.ckpt")):
        model = read(path)
        try:
            write_arc_run(checkpoint_of(model), path.with_suffix(".back"))
        except CheckpointError as error:
            refused[path.stem] = str(error).splitlines()[-1].strip(" -")
    return refused


def checkpoint_of(model: Any) -> Any:
    """A bare model as a checkpoint in memory, its perturbations, batches and genes numbered."""
    from steval.checkpoints.manifest import Manifest, PerturbationEntry
    from steval.checkpoints.store import Checkpoint
    from steval.data.columns import Columns

    config = model.config
    names = ["non-targeting", *(f"P{number}" for number in range(1, config.pert_dim))]
    output_genes = config.gene_decoder is not None or config.input_is_genes
    manifest = Manifest(
        made_by="benchmarks/parity_arc.py",
        model=config,
        input_genes=tuple(f"I{number}" for number in range(config.input_dim)) if config.input_is_genes else None,
        output_genes=tuple(f"O{number}" for number in range(config.prediction_dim)) if output_genes else None,
        scale="lognorm" if output_genes else "embedding",
        perturbations=tuple(PerturbationEntry(name=name) for name in names),
        columns=Columns(),
        cell_types=("A",),
        batches=tuple(f"b{number}" for number in range(config.batch_dim or 1)),
    )
    return Checkpoint(model.checkpoint_path, manifest, model.weights, torch.eye(config.pert_dim), None, digest="")


def compare_back(directory: Path, refused: dict[str, str]) -> int:
    """A line per model that differs from its own way back, and a count; returns the number of failures."""
    failures, worst = 0, 0.0
    runs = sorted(directory.glob("*.back"))
    for run in runs:
        with np.load(directory / f"{run.stem}.npz") as before, np.load(directory / f"{run.stem}.back.npz") as after:
            keys = {key for key in before if not key.startswith("in_")}
            found = {
                key: float(np.abs(before[key] - after[key]).max() / max(np.abs(before[key]).max(), SMALLEST_SCALE))
                for key in keys & set(after)
            } | dict.fromkeys(keys ^ set(after), float("inf"))
        worst = max(worst, *found.values())
        failed = {key: value for key, value in found.items() if not value <= RELATIVE}
        failures += bool(failed)
        if failed:
            print(f"{run.stem:>4} back: FAILED {failed}")
    for number, reason in refused.items():
        print(f"{number:>4} not written back: {reason}")
    print(
        f"back to arc-state: {len(runs)} models, {failures} failures, {len(refused)} refused, largest difference {worst:.1e}"
    )
    return failures


def read(path: Path) -> Any:
    """The model of a file, in the regime that arc-state 0.11.1 computes."""
    from steval.checkpoints.arc import read_arc

    return read_arc(path, _attention(path))


def _attention(path: Path) -> str | None:
    """None where the file says it; else what arc-state 0.11.1 computes: a Llama file without the key causal with rotary."""
    from steval.checkpoints.arc import read_arc

    recorded = read_arc(path)
    keyless = not recorded.regime.recorded and recorded.config.backbone.kind == "llama"
    return "causal-rope" if keyless else None


def compare(directory: Path) -> int:
    """Runs where steval is installed: prints a line per model and the worst; returns the number of failures."""
    from steval.model.inference import InferenceNetwork
    from steval.model.network import StateTransition

    failures, worst = 0, 0.0
    for path in sorted(directory.glob("*.ckpt"), key=lambda path: int(path.stem)):
        model = read(path)
        network = StateTransition(model.config).eval()
        network.load_state_dict(model.weights)
        with np.load(path.with_suffix(".npz")) as arrays:
            data = {key: torch.from_numpy(arrays[key]) for key in arrays}
        found = differences(network, InferenceNetwork.from_network(network), data)
        worst = max(worst, *found.values())
        failed = [name for name, difference in found.items() if not difference <= RELATIVE]
        failures += bool(failed)
        print(f"{path.stem:>4} {max(found.values()):.1e} {'FAILED ' + str(failed) if failed else 'ok'}", end="  ")
        print(_options(model.config))
    print(f"{failures} failures, largest difference {worst:.1e} of the largest output (allowed {RELATIVE:.0e})")
    return failures


def differences(network: Any, arranged: Any, data: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value, by our two ways of computing it."""
    size = network.config.cell_set_size
    results = {}
    for prefix, part in (("full", slice(None)), ("short", slice(0, max(size - 3, 1)))):
        sets = 2 if prefix == "full" else 1
        inputs = [data[f"in_{name}"][part].unflatten(0, (sets, -1)) for name in ("ctrl_cell_emb", "pert_emb", "batch")]
        with torch.no_grad():
            ways = {"network": network(*inputs)}
        terms = arranged.encode_controls(inputs[0].flatten(0, 1))
        indices = torch.arange(len(terms)).unflatten(0, (sets, -1))
        ways["arranged"] = arranged.predict(terms, indices, inputs[1][:, 0], inputs[2])
        for way, prediction in ways.items():
            ours = {"preds": prediction.output_BSG, "pert_cell_counts_preds": prediction.genes_BSD}
            ours["confidence_pred"] = None if prediction.confidence_B is None else prediction.confidence_B[:, None]
            for key, value in ours.items():
                theirs = data.get(f"{prefix}_{key}")
                if (value is None) != (theirs is None):
                    results[f"{way} {prefix} {key} is missing on one side"] = float("inf")
                elif value is not None:
                    difference = (value.reshape(theirs.shape) - theirs).abs().max()
                    results[f"{way} {prefix} {key}"] = float(difference / theirs.abs().max().clamp_min(SMALLEST_SCALE))
    return results


def _options(config: Any) -> str:
    backbone = config.backbone
    flags = [
        "mask_attn",
        "batch_encoder",
        "batch_token",
        "confidence_token",
        "predict_residual",
        "use_basal_projection",
    ]
    parts = [config.attention, config.output_space, str(config.input_key), config.activation]
    parts += [f"enc{config.num_encoder_layers}", f"dec{config.num_decoder_layers}"]
    parts.append("GPT-2")
    if backbone.kind == "llama":
        parts[-1] = f"heads{backbone.num_heads}/{backbone.num_key_value_heads}x{backbone.head_dim}"
    parts += [flag for flag in flags if getattr(config, flag)]
    if config.gene_decoder is not None:
        parts.append("residual decoder" if config.gene_decoder.residual else "decoder")
    return " ".join(parts)


def main() -> None:
    """Parse the command line and run both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arc-python", type=Path, help="python of an environment with arc-state 0.11.1")
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate is not None:
        generate(options.generate, [{}] * options.models, options.seed)
        return
    if options.reload is not None:
        reload(options.reload)
        return
    if options.arc_python is None:
        parser.error("--arc-python is needed")
    with tempfile.TemporaryDirectory() as directory:
        place, python = Path(directory), str(options.arc_python)
        numbers = ["--models", str(options.models), "--seed", str(options.seed)]
        subprocess.run([python, __file__, "--generate", directory, *numbers], check=True)
        failures = compare(place)
        refused = write_back(place)
        subprocess.run([python, __file__, "--reload", directory], check=True)
        failures += compare_back(place, refused)
    sys.exit(min(failures, 1))


if __name__ == "__main__":
    main()
