"""What a checkpoint says of itself: JSON metadata in the safetensors header, read without torch.

The format is described for other readers in docs/checkpoints.md.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from steval.checkpoints.location import require_plain
from steval.data.columns import Columns
from steval.data.effects.decoding import DecodingSettings
from steval.data.reference import DataReference
from steval.errors import CheckpointError, ConfigError
from steval.model.config import ModelConfig
from steval.settings import Settings
from steval.wording import counted

FORMAT_VERSION = 1
METADATA_KEY = "steval"
DIGEST_KEY = "steval_sha256"
MAX_HEADER_BYTES = 100 * 2**20
FEATURES = "perturbation/features"
CONTROLS = "controls/"
"""Prefix of the default control set's tensors: `data`, `indices`, `indptr` (CSR), `cell_type`, `batch` (codes)."""
EFFECTS = "effects/"
"""Prefix of the training effects' tensors, see `steval.data.effects.record.TrainingEffects.to_arrays`."""


class PerturbationEntry(Settings):
    """One name of the perturbation vocabulary; its position is its row in `perturbation/features`."""

    name: str
    trained: bool = True
    """False where only features are known (an unseen perturbation)."""


class PhaseRecord(Settings):
    """One finished or interrupted phase of fine-tuning."""

    name: str
    steps: int
    best_step: int | None = None
    validation: dict[str, float] = Field(default_factory=dict)


class TrainingRecord(Settings):
    """How the weights came about."""

    config_digest: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    phases: tuple[PhaseRecord, ...] = ()
    step: int = 0
    """Optimiser steps over all phases."""
    validation: dict[str, float] = Field(default_factory=dict)
    """Validation losses of these weights, by name (`val/gene` and so on)."""
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    initial_weights: str | None = None
    """What `--init-from` was given, with its digest."""


class WarmupRecord(Settings):
    """A small prediction made when the checkpoint was written, for the service to repeat before it is ready."""

    perturbation: str
    num_cells: int
    seed: int
    mean: tuple[float, ...]
    """Predicted mean of the first genes, in the order of the gene contract."""


class Manifest(Settings):
    """Metadata of one checkpoint (docs/checkpoints.md)."""

    format_version: Literal[1] = 1
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    made_by: str
    """The command that wrote the file."""
    model: ModelConfig
    input_genes: tuple[str, ...] | None
    """Ordered names of the basal input's columns; none for an embedding."""
    output_genes: tuple[str, ...] | None
    """Ordered names of the predicted genes; none where the model predicts an embedding alone."""
    scale: Literal["counts", "lognorm", "embedding"]
    """Scale of the predicted expression, and of the input unless the input is an embedding."""
    target_sum: float | None = None
    """Total per cell before log1p; none: unknown."""
    perturbations: tuple[PerturbationEntry, ...]
    columns: Columns
    cell_types: tuple[str, ...] = ()
    """In code order."""
    batches: tuple[str, ...] = ()
    """In code order; the codes of the batch encoder."""
    num_controls: dict[str, int] = Field(default_factory=dict)
    """Cells of the default control set by cell type; empty: there is none."""
    training: TrainingRecord | None = None
    evaluation: DataReference | None = None
    training_data: DataReference | None = None
    warmup: WarmupRecord | None = None
    decoding: DecodingSettings = DecodingSettings()
    """How predictions become cells."""
    calibration: dict[str, Any] | None = None
    """How the decoding was chosen: candidates, their scores, the expected score; none: it was not."""
    training_effects: dict[str, Any] | None = None
    """Names of perturbations and contexts of the training effects; none: the file carries none."""
    licence: str | None = None
    """Licence of the base weights."""
    notes: tuple[str, ...] = ()
    """What a reader should know: choices made at import, things left out."""
    tensors: dict[str, str] = Field(default_factory=dict)
    """sha256 of each tensor's bytes."""

    @property
    def control(self) -> str:
        """The label of control cells."""
        return self.columns.control

    @property
    def perturbation_names(self) -> list[str]:
        return [entry.name for entry in self.perturbations]

    def to_metadata(self) -> dict[str, str]:
        """The safetensors `__metadata__` mapping: canonical JSON and its sha256."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return {METADATA_KEY: text, DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest(), "format": "pt"}


def read_header(path: Path) -> dict[str, Any]:
    """The raw safetensors header: tensor name → dtype, shape, data_offsets; `__metadata__`. Checks sizes first."""
    path = Path(path)
    try:
        size = require_plain(path).stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 10 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: its header claims {counted(length, 'byte')}, the file has {size:,}"
                )
            return _parse_header(handle.read(length), path, size - 8 - length)
    except FileNotFoundError as error:
        raise CheckpointError(f"no such checkpoint: {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of a steval checkpoint; anything else is a `CheckpointError` that says what the file is."""
    header = read_header(path)
    return parse_metadata(header.get("__metadata__"), path)


def parse_metadata(metadata: Any, path: Path) -> Manifest:
    """Validate the metadata mapping of a header."""
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} is a safetensors file but not a steval checkpoint: its metadata lacks the key {METADATA_KEY!r}. "
            "An arc-state model becomes one by: steval convert MODEL_DIR -o OUT.safetensors"
        )
    if hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() != metadata.get(DIGEST_KEY):
        raise CheckpointError(f"{path}: the metadata does not match its own digest; the file was altered or damaged")
    try:
        values = json.loads(text)
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has checkpoint format {version}; this steval reads format {FORMAT_VERSION}. Use the "
                "steval that wrote it"
            )
        return Manifest.parse(values, source=f"the metadata of {path}")
    except (json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the metadata is not a JSON mapping ({error})") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


_DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def _parse_header(raw: bytes, path: Path, num_data_bytes: int) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no mapping")
    end = 0
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            count = _DTYPE_BYTES[entry["dtype"]]
            for length in entry["shape"]:
                count *= int(length)
            if start != end or stop - start != count:
                raise CheckpointError(f"{path}: tensor {name!r} overlaps another, leaves a gap, or has a wrong size")
            end = stop
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the header describes a tensor in a way that cannot be read ({error})"
        ) from error
    if end != num_data_bytes:
        raise CheckpointError(
            f"{path} is truncated or padded: tensors need {counted(end, 'byte')}, the file holds {num_data_bytes:,}"
        )
    return header
