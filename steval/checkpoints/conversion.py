"""arc-state model → one steval checkpoint: what the files say is kept, what they do not say is asked for, never guessed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steval import __version__
from steval.checkpoints.adapters.adapter_file import write_adapter
from steval.checkpoints.arc import ArcModel, read_arc
from steval.checkpoints.arc_maps import read_feature_map
from steval.checkpoints.feature_file import read_features
from steval.checkpoints.location import ADAPTER_SUFFIX
from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.checkpoints.store import Checkpoint, ControlSet, save_checkpoint
from steval.checkpoints.transplant import one_hot_columns
from steval.data.cells.genes import read_genes, require_unique
from steval.errors import CheckpointError, ConfigError
from steval.model.config import Attention, ModelConfig
from steval.model.lora_settings import LoraSettings
from steval.settings import Settings
from steval.wording import counted

_HEADERS = frozenset({"", "gene", "genes", "gene_name", "gene_names", "gene_symbol", "symbol", "feature_name", "index"})
SAME_FEATURES = 1e-6


class ConversionOptions(Settings):
    """What the user adds to what the files say."""

    attention: str | None = None
    """`bidirectional`, `causal` or `causal-rope`; none: as recorded, else chosen with the reason given."""
    genes: tuple[Path, ...] = ()
    """Gene lists (text, CSV, h5ad), told apart by their length."""
    perturbation_map: Path | None = None
    """A perturbation map as arc-state writes it, for a bare checkpoint file."""
    perturbation_features: Path | None = None
    """Features of perturbations that the model was not trained on."""
    scale: str | None = None
    """Scale of the expression that the model was trained on; none: lognorm, as arc-state asks for."""
    target_sum: float | None = None
    """Total per cell before log1p at training; arc-state does not record it."""
    licence: str | None = None
    """Licence of the weights."""


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and every choice on the way."""

    path: Path
    manifest: Manifest
    dropped: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types; the tensors' digests are left to `steval inspect`."""
        manifest = self.manifest
        return {
            "path": str(self.path),
            "attention": manifest.model.attention,
            "perturbations": len(manifest.perturbations),
            "untrained": sum(not entry.trained for entry in manifest.perturbations),
            "input_genes": None if manifest.input_genes is None else len(manifest.input_genes),
            "output_genes": None if manifest.output_genes is None else len(manifest.output_genes),
            "scale": manifest.scale,
            "target_sum": manifest.target_sum,
            "controls": manifest.num_controls,
            "dropped": list(self.dropped),
            "notes": list(manifest.notes),
        }


@dataclass(frozen=True)
class Conversion:
    """A converted model in memory, before controls are added and it is written."""

    model: ArcModel
    manifest: Manifest
    features: Tensor

    def as_checkpoint(self) -> Checkpoint:
        """The same as an unsaved checkpoint."""
        return Checkpoint(
            self.model.checkpoint_path, self.manifest, self.model.weights, self.features, None, digest="unsaved"
        )

    def with_attention(self, attention: Attention, reason: str) -> "Conversion":
        """The same under another regime, with the reason in place of the first one's."""
        model = ModelConfig.parse({**self.manifest.model.as_dict(), "attention": attention})
        notes = [note for note in self.manifest.notes if not note.startswith("attention ")]
        notes.append(f"attention {attention}: {reason}")
        return replace(self, manifest=self.manifest.model_copy(update={"model": model, "notes": tuple(notes)}))

    def with_names(self, cell_types: tuple[str, ...], batches: tuple[str, ...]) -> "Conversion":
        """The same with these cell type and batch names (of a default control set)."""
        return replace(self, manifest=self.manifest.model_copy(update={"cell_types": cell_types, "batches": batches}))

    def write_apart(self, out: Path, adapter: Path, controls: ControlSet | None = None) -> ConversionReport:
        """Write the weights without their LoRA adapters to `out`, and these to `adapter`; without any it is a `ConfigError`."""
        adapters, base = self.model.adapters, self.model.base
        if adapters is None or base is None:
            raise ConfigError(f"{self.model.source} has no LoRA adapters to write to {adapter}")
        if not str(adapter).endswith(ADAPTER_SUFFIX):
            raise ConfigError(f"an adapter is a NAME{ADAPTER_SUFFIX}; got {adapter}")
        report = replace(self, model=replace(self.model, weights=base)).write(out, controls)
        parts = {"attention": "attn", "mlp": "mlp"}
        targets = tuple(target for target, part in parts.items() if any(f"{part}." in name for name in adapters.pairs))
        settings = LoraSettings.parse({"rank": adapters.rank, "alpha": adapters.alpha, "targets": targets})
        merged = Checkpoint(out, self.manifest, self.model.weights, self.features, controls, digest="")
        tensors = report.manifest.tensors
        write_adapter(
            adapter, merged, adapters.pairs, settings, f"{Path(out).name} of {self.model.checkpoint_path.name}", tensors
        )
        return report

    def write(self, out: Path, controls: ControlSet | None = None) -> ConversionReport:
        """Write the checkpoint atomically."""
        if Path(out).suffix != ".safetensors":
            raise ConfigError(f"a steval checkpoint is a .safetensors file; got {out}")
        manifest = save_checkpoint(
            Path(out), manifest=self.manifest, weights=self.model.weights, features=self.features, controls=controls
        )
        return ConversionReport(Path(out), manifest, self.model.dropped)


def convert_arc(
    source: Path, out: Path, options: ConversionOptions | None = None, controls: ControlSet | None = None
) -> ConversionReport:
    """Convert an arc-state run directory or `.ckpt` into `out` (one `.safetensors` file).

    Raises `CheckpointError` for files that cannot be trusted or computed, `ConfigError` for what has to be given
    (gene names, perturbation names). Nothing is written then.
    """
    return plan_conversion(source, options or ConversionOptions()).write(out, controls)


def plan_conversion(source: Path, options: ConversionOptions) -> Conversion:
    """Everything of `convert_arc` but the writing."""
    model = read_arc(source, options.attention)
    notes = list(model.notes)
    entries, features = _perturbations(model, options, notes)
    input_genes, output_genes = _genes(model, options.genes)
    manifest = Manifest(
        made_by=f"steval convert {__version__}",
        model=model.config,
        input_genes=input_genes,
        output_genes=output_genes,
        scale=_scale(model, options, notes),
        target_sum=_target_sum(model, options, notes),
        perturbations=entries,
        columns=model.vocabulary.columns,
        cell_types=model.vocabulary.cell_types,
        batches=_batches(model, notes),
        training=model.training,
        licence=options.licence,
        notes=tuple(notes),
    )
    return Conversion(model, manifest, features)


def _perturbations(
    model: ArcModel, options: ConversionOptions, notes: list[str]
) -> tuple[tuple[PerturbationEntry, ...], Tensor]:
    known = dict(model.vocabulary.features)
    if options.perturbation_map is not None:
        known = read_feature_map(options.perturbation_map)
    if not known:
        raise ConfigError(
            f"{model.source} names no perturbations: a bare checkpoint does not carry them. Give the run directory, or its "
            "map with --perturbation-map pert_onehot_map.pt"
        )
    width = len(next(iter(known.values())))
    if width != model.config.pert_dim:
        raise CheckpointError(
            f"the perturbation map has vectors of length {width}, the network takes {model.config.pert_dim}; the map and "
            "the checkpoint are not of one run"
        )
    control = model.vocabulary.columns.control
    if control not in known:
        known[control] = torch.zeros(width)
        notes.append(f"the control {control!r} is not in the perturbation map and is the zero vector, as upstream")
    entries = [PerturbationEntry(name=name) for name in known]
    what = (
        "holds feature vectors, also of perturbations without any cells"
        if _is_dense(known)
        else "has held-out ones too"
    )
    notes.append(f"all perturbations of the map count as trained; the map does not tell them apart and {what}")
    if options.perturbation_features is not None:
        added = _unseen(known, model.config.pert_dim, options.perturbation_features, notes)
        entries += [PerturbationEntry(name=name, trained=False) for name in added]
        known |= added
    return tuple(entries), torch.stack(list(known.values()))


def _is_dense(features: dict[str, Tensor]) -> bool:
    """Whether these are feature vectors, not one-hot codes."""
    return one_hot_columns(torch.stack(list(features.values())), list(features)) is None


def _unseen(known: dict[str, Tensor], width: int, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """Features of the names that the model lacks; the model's own features stay."""
    if not _is_dense(known):
        raise ConfigError(
            "this model's perturbations are one-hot: features of further ones mean nothing to it. Fine-tune it on them, or "
            "convert a model that was trained with perturbation features"
        )
    found = {name: torch.from_numpy(vector) for name, vector in read_features(path).items()}
    if len(next(iter(found.values()))) != width:
        raise ConfigError(
            f"{path} has features of length {len(next(iter(found.values())))}, the model takes {width}; give the features "
            "that it was trained with"
        )
    shared = [name for name in found if name in known]
    differing = [name for name in shared if float((found[name] - known[name]).abs().max()) > SAME_FEATURES]
    if shared and len(differing) == len(shared):
        raise ConfigError(
            f"{path} disagrees with the model on every one of {counted(len(shared), 'perturbation')} that both have "
            f"({', '.join(shared[:3])}): "
            "these are other features than the model was trained with"
        )
    added = {name: vector for name, vector in found.items() if name not in known}
    notes.append(
        f"features of {counted(len(added), 'perturbation')} from {path.name}, which the model was not trained on"
    )
    if differing:
        notes.append(
            f"{path.name} has other features for {counted(len(differing), 'trained perturbation')}; the model's own stay"
        )
    return added


def _genes(model: ArcModel, paths: Sequence[Path]) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(input, output) gene names by the lengths that the network has; given lists go before recorded ones."""
    config = model.config
    input_dim = config.input_dim if config.input_is_genes else None
    output_dim = config.gene_decoder.gene_dim if config.gene_decoder else input_dim and config.output_dim
    given = {str(path): read_genes(path) for path in paths}
    recorded = {"the checkpoint": list(model.vocabulary.genes)} if model.vocabulary.genes else {}
    names = {dim: _gene_list(dim, given, recorded) for dim in {input_dim, output_dim} if dim is not None}
    return (
        None if input_dim is None else names[input_dim],
        None if output_dim is None else names[output_dim],
    )


def _gene_list(num_genes: int, given: dict[str, list[str]], recorded: dict[str, list[str]]) -> tuple[str, ...]:
    for lists in (given, recorded):
        fitting = {_without_header(genes, num_genes): source for source, genes in lists.items()}
        fitting = {genes: source for genes, source in fitting.items() if len(genes) == num_genes}
        if len(fitting) > 1:
            raise ConfigError(f"different gene lists of length {num_genes}: {', '.join(fitting.values())}; give one")
        for genes, source in fitting.items():
            require_unique(genes, source)
            return genes
    found = {source: len(genes) for source, genes in {**recorded, **given}.items()}
    raise ConfigError(
        f"the names of the model's {counted(num_genes, 'gene')} are not known"
        + (f" (found {', '.join(f'{n:,} in {source}' for source, n in found.items())})" if found else "")
        + "; they are not guessed. Give the genes of the training data, in its order, with --genes FILE.txt|.csv|.h5ad "
        "(may be repeated)"
    )


def _without_header(genes: list[str], num_genes: int) -> tuple[str, ...]:
    if len(genes) == num_genes + 1 and genes[0].strip('"').lower() in _HEADERS:
        return tuple(genes[1:])
    return tuple(genes)


def _scale(model: ArcModel, options: ConversionOptions, notes: list[str]) -> Any:
    if not model.config.input_is_genes and model.config.gene_decoder is None:
        if options.scale is not None:
            notes.append(f"the model predicts an embedding; --scale {options.scale} does not apply to it")
        return "embedding"
    if options.scale is None:
        data = model.vocabulary.run_config.get("data")
        settings = data.get("kwargs") if isinstance(data, dict) else None
        if isinstance(settings, dict) and settings.get("int_counts"):
            raise ConfigError(
                "the run was configured with int_counts: say what it was trained on with --scale counts|lognorm"
            )
        notes.append("scale lognorm: arc-state does not record it and asks for log1p data; --scale counts otherwise")
        return "lognorm"
    if options.scale not in ("counts", "lognorm"):
        raise ConfigError(f"--scale is counts or lognorm, got {options.scale!r}")
    return options.scale


def _target_sum(model: ArcModel, options: ConversionOptions, notes: list[str]) -> float | None:
    has_genes = model.config.input_is_genes or model.config.gene_decoder is not None
    if options.target_sum is not None and not options.target_sum > 0:
        raise ConfigError(f"--target-sum must be above 0, got {options.target_sum}")
    if options.target_sum is None and has_genes and options.scale != "counts":
        notes.append(
            "the target_sum of the training data is unknown (arc-state does not record it); --target-sum sets it"
        )
    return options.target_sum


def _batches(model: ArcModel, notes: list[str]) -> tuple[str, ...]:
    batches, num_codes = model.vocabulary.batches, model.config.batch_dim
    if num_codes is None or len(batches) == num_codes:
        return batches
    if batches:
        raise CheckpointError(
            f"the batch map has {counted(len(batches), 'name')}, the network {counted(num_codes, 'batch code')}; they "
            "are not of one run"
        )
    unnamed = counted(num_codes, "batch without a name", "batches without names")
    notes.append(f"{unnamed}, called by code: 0 to {num_codes - 1}")
    return tuple(str(code) for code in range(num_codes))
