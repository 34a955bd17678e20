"""`FinetuneConfig`: everything that fine-tuning is told, strict and resolved; torch-free.

The recipes shipped with the package (`steval.trainer.recipes`) are files of this form.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from steval.data.files import absolute_pattern
from steval.data.splits.assignment import CellSplit, SplitSettings, TomlSplit
from steval.data.training.cells import CellsSettings
from steval.data.training.sets import ControlMapping, Sampling
from steval.limits import Count, Processes, Seed, SetSize, Tally, Width
from steval.machine import MAX_THREADS
from steval.model.loss_settings import AUXILIARY_KINDS, AuxiliaryKind, LossSettings
from steval.settings import Settings, read_yaml
from steval.trainer.recipes import with_recipe
from steval.trainer.settings.network import NetworkSettings
from steval.trainer.settings.phases import PhaseSettings


def _text(value: object) -> object:
    """YAML reads a bare 32 as a number."""
    return str(value) if isinstance(value, int) else value


LoggerName = Literal["csv", "tensorboard", "wandb"]
Precision = Annotated[Literal["32", "bf16-mixed"], BeforeValidator(_text)]


class DataSettings(CellsSettings):
    """Which cells, and what they mean."""

    split: SplitSettings = CellSplit()
    """Which perturbed cells train, validate and test."""
    features: str | None = None
    """File with a vector per perturbation (`.pt`, `.npz`, `.parquet`, `.csv`); none: one-hot, or the checkpoint's vectors."""
    gene_list: str | None = None
    """File with the gene contract (a name per line, or an h5ad); none: the checkpoint's genes, else the first file's."""
    input_gene_list: str | None = None
    """The same for an `X_hvg` input; none: the checkpoint's."""
    extra_perturbations: tuple[str, ...] = ()
    """Names beyond those of the data that the checkpoint is to know by their features (as untrained)."""
    evaluation_file: str | None = None
    """h5ad that `steval score` uses for this run's checkpoints; none: the test (or validation) cells of `files`."""


class SetSettings(Settings):
    """How cells are put together for a step."""

    size: SetSize = 64
    """Cells of a set."""
    per_batch: Width = 4
    """Sets of a batch, on each device."""
    mapping: ControlMapping = "cell_type"
    """Within what the control cells of a set are drawn: its cell type, or its cell type and batch."""
    sampling: Sampling = "cells"
    """In training: every cell once an epoch, or every `perturbations` in equally many sets."""
    controls_as_targets: bool = True
    """Whether sets of control cells are predicted too, from other control cells, in training."""
    accumulation: Count = 1
    """Batches whose gradients are added up for one optimiser step; for cards with little memory."""


class ObjectiveSettings(LossSettings):
    """What is minimised:
    `total = embedding + decoder_weight · gene + confidence_weight · confidence + batch_weight · batch + change_weight · change
    + distil · distil + contrast · contrast`.

    With expression as input there is one head, called gene: `total = gene + ...`.
    """

    decoder_weight: float = Field(default=1.0, ge=0)
    """Weight of the gene decoder's loss beside the embedding loss; a phase may have its own."""
    confidence_weight: float = Field(default=0.0, ge=0)
    """Squared error of the confidence token's guess of the set's own loss."""
    batch_weight: float = Field(default=0.0, ge=0)
    """Cross-entropy of the batch that the batch token names."""
    change_weight: float = Field(default=0.0, ge=0)
    """L1: mean absolute predicted difference from the basal cells."""
    distil: float = Field(default=0.0, ge=0)
    """Weight of the squared error of a head that tells the set's mean embedding (`data.auxiliary_key`) from the backbone's output;
    a phase may have its own."""
    contrast: float = Field(default=0.0, ge=0)
    """Weight of naming the set's embedding among those of the batch (InfoNCE); a phase may have its own."""


class OptimiserSettings(Settings):
    """AdamW (arXiv:1711.05101) and the clipping before it."""

    weight_decay: NonNegativeFloat = 1e-3
    """On matrices only (none on norms, biases, embeddings, tokens); 1e-3 to 5e-3 is recommended."""
    clip: PositiveFloat = 1.0
    """Largest joint norm of all gradients; above it they are scaled down to it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and square of the gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the running square."""


class CheckSettings(Settings):
    """When to validate, log and save, counted in optimiser steps of a phase; ends of phases are always among them."""

    validate_every: Count = 500
    """Validation on fixed sets."""
    validation_sets: Count | None = None
    """At most so many of the fixed validation sets of each perturbation and cell type; none: every cell."""
    log_every: Count = 50
    """A row of training losses (means over these steps), rates and gradient norms in metrics.csv."""
    save_every: Count = 1000
    """`last.ckpt`, which `--resume` continues from."""
    keep_every: Tally = 0
    """`step-*.safetensors` for ablations; 0: none."""
    quick_eval_every: Tally = 0
    """Quick cell-eval on held-out perturbations at every so many validations; 0: never."""
    select_best: str = Field(default="val/gene", pattern=r"^(val|eval)/\S+$")
    """Metric that decides `best-val.safetensors`."""
    select_mode: Literal["min", "max"] | None = None
    """Which end of it is good; none: `min` for losses (`val/...`), needed for `eval/...`."""
    calibrate: bool = True
    """Whether a finished run chooses how predictions become cells (`steval calibrate` does it later)."""

    @model_validator(mode="after")
    def _selectable(self) -> "CheckSettings":
        if self.select_best.startswith("eval/") and not self.quick_eval_every:
            raise ValueError(f"select_best {self.select_best!r} needs quick_eval_every above 0")
        if self.select_best.startswith("eval/") and self.select_mode is None:
            raise ValueError(f"select_best {self.select_best!r} needs select_mode: min or max")
        return self


Strategy = Literal["auto", "ddp", "fsdp"]


class ComputeSettings(Settings):
    """Arithmetic and processes; nothing here changes what is learned beyond rounding."""

    precision: Precision = "32"
    """`bf16-mixed`: products in bfloat16, weights and losses in float32."""
    tf32: bool = False
    """TensorFloat-32 products on NVIDIA GPUs."""
    compile: bool = False
    """`torch.compile`; pays off over long runs."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Record a whole step on a GPU and replay it, so that the host's speed does not bound small steps; where that cannot be
    (no GPU, several devices, accumulation, activation checkpointing, a sinkhorn loss), steps run as without: with a note where
    it was asked for by `true`."""
    activation_checkpointing: bool = False
    """Compute each backbone block again in the backward pass instead of keeping its activations."""
    devices: Processes | Literal["auto"] = "auto"
    """Devices of each node; `auto`: all GPUs, or one CPU process."""
    num_nodes: Processes = 1
    """Nodes (torchrun, SLURM)."""
    strategy: Strategy = "auto"
    """How devices share a step. `ddp`: each holds the whole network; `auto`: that where there are several; `fsdp`: each holds a
    piece of every tensor, for a network that does not fit otherwise (slower; no `compile`, `cuda_graph`, `average_weights`)."""
    workers: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    """Processes that make batches, each with the cells in memory of its own; 0: threads of this process (up to six for a GPU, one
    elsewhere), which share them and suffice but for data on slow disks."""


class FinetuneConfig(Settings):
    """One fine-tuning run."""

    data: DataSettings = DataSettings()
    """Which cells, and what they mean."""
    network: NetworkSettings = NetworkSettings()
    """The network, where it is not the checkpoint's."""
    loss: ObjectiveSettings = ObjectiveSettings()
    """What is minimised."""
    phases: Annotated[tuple[PhaseSettings, ...], Field(min_length=1)]
    """In order; each is a fit of its own."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """AdamW and clipping."""
    sets: SetSettings = SetSettings()
    """Cells of a set, sets of a batch."""
    checks: CheckSettings = CheckSettings()
    """When to validate, log and save."""
    compute: ComputeSettings = ComputeSettings()
    """Precision, devices, processes."""
    average_weights: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a running average of the weights, which then validates and is saved; none: no averaging."""
    seed: Seed = 42
    """Of initial weights, dropout and cell sets."""
    loggers: tuple[LoggerName, ...] = ("csv", "tensorboard")
    """metrics.csv is always written; `tensorboard` and `wandb` are added when named."""
    wandb_project: str = "steval"
    """Project of the Weights & Biases run."""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, laid over the recipe that its key `recipe` names if it has one, apply `a.b=c` overrides, validate."""
        return cls.parse_with(with_recipe(read_yaml(path), str(path)), overrides, source=str(path))

    @model_validator(mode="after")
    def _whole_matrices_beside_adapters(self) -> "FinetuneConfig":
        if self.compute.strategy == "fsdp" and any(phase.lora for phase in self.phases):
            raise ValueError(
                "lora adapters train beside whole matrices: compute.strategy fsdp shares these out; take ddp"
            )
        return self

    @property
    def auxiliary_kinds(self) -> tuple[AuxiliaryKind, ...]:
        """Heads on the auxiliary embedding: those that have a weight in any phase."""
        return tuple(
            kind for kind in AUXILIARY_KINDS if any(self.auxiliary_weight(kind, phase) for phase in self.phases)
        )

    def auxiliary_weight(self, kind: AuxiliaryKind, phase: PhaseSettings) -> float:
        """Weight of a loss on the auxiliary embedding in a phase."""
        own = phase.distil if kind == "distil" else phase.contrast
        return getattr(self.loss, kind) if own is None else own

    @model_validator(mode="after")
    def _auxiliary_embedding(self) -> "FinetuneConfig":
        if self.auxiliary_kinds and self.data.auxiliary_key is None:
            raise ValueError(
                f"{' and '.join(f'loss.{kind}' for kind in self.auxiliary_kinds)} read a cell embedding: name its obsm matrix in "
                "data.auxiliary_key"
            )
        if self.data.auxiliary_key is not None and not self.auxiliary_kinds:
            raise ValueError("data.auxiliary_key is read by nothing: set loss.distil or loss.contrast above 0")
        if self.auxiliary_kinds and self.compute.strategy == "fsdp":
            raise ValueError("heads on an auxiliary embedding are not shared out by compute.strategy fsdp; take ddp")
        return self

    @model_validator(mode="after")
    def _unique_phases(self) -> "FinetuneConfig":
        names = [phase.name for phase in self.phases]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"phases need names of their own; used twice: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _shardable(self) -> "FinetuneConfig":
        compute = self.compute
        if compute.strategy != "fsdp":
            return self
        obstacles = {
            "compute.compile true": compute.compile,
            "compute.cuda_graph true": compute.cuda_graph is True,
            "average_weights": self.average_weights is not None,
        }
        found = [name for name, is_set in obstacles.items() if is_set]
        if found:
            raise ValueError(
                f"compute.strategy fsdp, where each device holds a piece of every tensor, goes without {', '.join(found)}; "
                "leave that out, or take strategy ddp, where each device holds the whole network"
            )
        return self

    def with_absolute_paths(self) -> "FinetuneConfig":
        """The same with every path taken from the working directory, so that a run can be resumed from another."""
        data = self.data
        files = tuple(absolute_pattern(pattern) for pattern in data.files)
        singles = ("features", "gene_list", "input_gene_list", "evaluation_file", "cache_dir")
        changed = {name: _absolute(value) for name in singles if (value := getattr(data, name)) is not None}
        split = data.split
        if isinstance(split, TomlSplit):
            split = split.model_copy(update={"path": _absolute(split.path)})
        return self.model_copy(update={"data": data.model_copy(update={**changed, "files": files, "split": split})})

    @property
    def total_steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def best_is_lowest(self) -> bool:
        """Whether the selected metric is to be minimised."""
        return (self.checks.select_mode or "min") == "min"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
