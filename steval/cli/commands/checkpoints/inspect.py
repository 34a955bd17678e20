"""`steval inspect`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steval.cli import options
from steval.cli.output import print_facts, print_json, print_table, say, say_wrapped
from steval.wording import counted

SHOWN_NAMES = 8


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .safetensors checkpoint, a run, an arc-state run or .ckpt.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all weights and check digests, shapes and values.")
    ] = False,
    json: options.JsonFlag = False,
) -> None:
    """Say what a checkpoint holds: network, attention, genes, perturbations, training record, licence. Runs nothing of it.

    Example: `steval inspect model.safetensors --verify`
    """
    from steval.checkpoints.inspection import inspect_checkpoint

    found = inspect_checkpoint(path, verify=verify)
    if json:
        print_json(found)
        return
    if found["format"] == "steval adapter":
        print_facts(str(path), _adapter_rows(found))
        return
    print_facts(str(path), _rows(found))
    if "evidence" in found:
        say_wrapped(found["evidence"])
        say()
    print_table(
        f"Parameters: {found['parameters']['total']:,}",
        ("module", "parameters"),
        [(module, f"{count:,}") for module, count in found["parameters"]["by_module"].items()],
    )
    for note in found["notes"]:
        say(f"Note: {note}")


def _adapter_rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    lora, own = found["lora"], found["own_tensors"]
    return [
        ("format", "adapter (verified): give it to --adapter beside its base"),
        ("base", found["base"]),
        ("size", f"{found['size_bytes'] / 1e6:.1f} MB"),
        (
            "adapters",
            f"rank {lora['rank']}, alpha {lora['alpha']:g}, beside {counted(len(found['matrices']), 'matrix', 'matrices')}",
        ),
        ("own tensors", f"{len(own)}: {', '.join(own[:SHOWN_NAMES])}" + (" …" if len(own) > SHOWN_NAMES else "")),
        ("perturbations", found["perturbations"]),
        ("decoding", found["decoding"]["kind"]),
    ]


def _rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    model, perturbations, training = found["model"], found["perturbations"], found["training"] or {}
    backbone = model["backbone"]
    rows = [
        ("format", found["format"] + (" (verified)" if found["verified"] else "")),
        ("made by", found.get("made_by")),
        ("licence", found["licence"] or "not recorded"),
        (
            "backbone",
            f"{backbone['kind']}, {counted(backbone['num_layers'], 'block')}, hidden {backbone['hidden_size']}, "
            f"{counted(backbone['num_heads'], 'head')}",
        ),
        ("attention", found["attention"] + (", each cell to itself alone (mask_attn)" if model["mask_attn"] else "")),
        (
            "input",
            f"{model['input_key'] or 'X'}, {counted(model['input_dim'], 'column')}; sets of "
            f"{counted(model['cell_set_size'], 'cell')}",
        ),
        ("output", f"{model['output_space']}, {counted(model['output_dim'], 'column')}" + _decoder(model)),
        ("scale", _scale(found)),
        ("decoding", _decoding(found)),
        ("input genes", _names(found["genes"]["input"])),
        ("output genes", _names(found["genes"]["output"])),
        ("control", perturbations["control"]),
        ("perturbations", _names(perturbations["trained"])),
        ("untrained perturbations", _names(perturbations["untrained"])),
        ("cell types", _names(found["cell_types"])),
        ("batches", _names(found["batches"])),
        ("default controls", ", ".join(f"{name}: {n}" for name, n in found["controls"].items()) or None),
        ("trained steps", training.get("step")),
        ("phases", ", ".join(phase["name"] for phase in training.get("phases", [])) or None),
        (
            "validation",
            ", ".join(f"{name} {loss:.6g}" for name, loss in training.get("validation", {}).items()) or None,
        ),
        ("started from", training.get("initial_weights")),
        ("training data", _files(found["training_data"])),
        ("evaluation data", _files(found["evaluation"])),
    ]
    return [(what, value) for what, value in rows if value is not None]


def _decoder(model: dict[str, Any]) -> str:
    decoder = model["gene_decoder"]
    return f"; gene decoder to {counted(decoder['gene_dim'], 'gene')}" if decoder else ""


def _decoding(found: dict[str, Any]) -> str | None:
    decoding, calibration = found.get("decoding"), found.get("calibration") or {}
    if decoding is None:
        return None
    if decoding["kind"] == "network":
        return "network: the cells that it puts out"
    simple = decoding["anchor"]
    parts = [f"network {decoding['network_weight']:g}"]
    if simple is not None:
        parts.append("simple model (" + ", ".join(f"{name} {value}" for name, value in simple.items()) + ")")
    expected = calibration.get("expected")
    score = f"; expected score {expected['leaderboard']:.1f} of 100 or less" if expected else ""
    return f"carried: {', '.join(parts)}{score}"


def _scale(found: dict[str, Any]) -> str:
    if found["scale"] is None:
        return "not recorded"
    if found["scale"] != "lognorm":
        return found["scale"]
    return f"lognorm, target_sum {found['target_sum']:g}" if found["target_sum"] else "lognorm, target_sum unknown"


def _names(names: list[str] | None) -> str | None:
    if not names:
        return None
    return f"{len(names)}: {', '.join(names[:SHOWN_NAMES])}" + (", …" if len(names) > SHOWN_NAMES else "")


def _files(reference: dict[str, Any] | None) -> str | None:
    return None if reference is None else ", ".join(str(file.get("path")) for file in reference.get("files", []))
