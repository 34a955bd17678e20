"""The card of a model on a hub (`README.md`), filled from a checkpoint's own description; names of files, never their places."""

from pathlib import Path

import yaml

from steval.checkpoints.evidence import evidence_sentence
from steval.checkpoints.hub.repository import HubReference
from steval.checkpoints.manifest import Manifest
from steval.data.reference import DataReference
from steval.wording import counted, listed

TAGS = ("single-cell", "perturb-seq", "virtual-cell", "state-transition", "steval")


def model_card(manifest: Manifest, reference: HubReference) -> str:
    """Markdown with the hub's YAML in front."""
    front = {"library_name": "steval", "tags": list(TAGS)}
    if manifest.licence is not None:
        front |= {"license": "other", "license_name": manifest.licence}
    trained = [entry.name for entry in manifest.perturbations if entry.trained and entry.name != manifest.control]
    genes = "an embedding" if manifest.output_genes is None else counted(len(manifest.output_genes), "gene")
    scale = manifest.scale if manifest.target_sum is None else f"{manifest.scale}, total {manifest.target_sum:g}"
    backbone = manifest.model.backbone
    layers = f"{backbone.kind}, {counted(backbone.num_layers, 'layer')} of {backbone.hidden_size}"
    facts = {
        "predicts": f"{genes} ({scale})",
        "perturbations": f"{counted(len(trained), 'trained perturbation')}: {listed(trained, 20)}",
        "control": manifest.control,
        "cell types": listed(manifest.cell_types, 20),
        "network": f"{layers}, attention {manifest.model.attention}",
        "decoding": manifest.decoding.kind,
        "training data": _files(manifest.training_data),
        "evaluation data": _files(manifest.evaluation),
        "licence": manifest.licence or "not recorded",
    }
    training = manifest.training
    if training is not None:
        losses = ", ".join(f"{name} {value:.6g}" for name, value in sorted(training.validation.items()))
        facts |= {
            "trained": f"{counted(training.step, 'step')}, seed {training.seed}" + (f"; {losses}" if losses else ""),
            "started from": training.initial_weights or "nothing",
        }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {reference.repo.partition('/')[2]}",
        "",
    ]
    lines += ["A State Transition model of cell responses to perturbations.", "", evidence_sentence(manifest), ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in facts.items()), ""]
    lines += [f"- {note}" for note in manifest.notes]
    lines += ["", "```sh", f"steval predict {reference} -o predictions.h5ad", f"steval inspect {reference}", "```", ""]
    return "\n".join(lines)


def _files(reference: DataReference | None) -> str:
    """Names and digests of the files of a part."""
    if reference is None:
        return "not recorded"
    return listed([f"{Path(file.path).name} (sha256 {file.sha256[:12]}…)" for file in reference.files], 10)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
