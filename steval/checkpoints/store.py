"""The one-file checkpoint: safetensors with weights, perturbation features, default controls and manifest. No pickle."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

from steval.checkpoints.manifest import CONTROLS, EFFECTS, FEATURES, Manifest, parse_metadata, read_header
from steval.data.effects.record import TrainingEffects
from steval.data.files import atomic_tensors
from steval.errors import CheckpointError, DataError, UnknownPerturbationError
from steval.machine import num_cores
from steval.model.config import Attention
from steval.model.lora import LoraPair, attach
from steval.model.network import StateTransition
from steval.wording import counted, listed

_In = TypeVar("_In")
_Out = TypeVar("_Out")
MAX_DEFAULT_CONTROLS = 512
"""Control cells per cell type that a checkpoint carries at most."""


@dataclass(frozen=True)
class ControlSet:
    """Measured control cells that predictions start from.

    `cells [n, input_dim]` float32 CSR in the checkpoint's scale and input genes (or an embedding); labels `[n]`.
    """

    cells: sp.csr_matrix
    cell_types: np.ndarray
    batches: np.ndarray

    def __len__(self) -> int:
        return self.cells.shape[0]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    `weights`: parameter name → tensor; `features [P, pert_dim]` float32 in the order of `manifest.perturbations`;
    `controls` None where the file carries none. `digest` is the sha256 over the manifest, and so over each tensor's.
    """

    path: Path
    manifest: Manifest
    weights: Mapping[str, torch.Tensor]
    features: torch.Tensor
    controls: ControlSet | None
    digest: str
    effects: TrainingEffects | None = None
    """Training effects, genes in the order of the output contract; None where the file carries none."""
    beside: Mapping[str, LoraPair] = field(default_factory=dict)
    """Matrices that stay beside `weights`, by the weight's name, their scale in `b_OR`; most checkpoints have none."""

    def network(self, attention: Attention | None = None) -> StateTransition:
        """The network with these weights, in eval mode on the CPU; `attention` overrides the recorded regime."""
        with torch.device("meta"):
            network = StateTransition(self.manifest.model, attention)
        network.load_state_dict(dict(self.weights), strict=True, assign=True)
        attach(network, self.beside, scale=1.0)
        return network.eval()

    def feature_rows(self, names: Sequence[str]) -> torch.Tensor:
        """Features `[len(names), pert_dim]`; unknown names are an `UnknownPerturbationError` with the nearest ones."""
        row = {name: index for index, name in enumerate(self.manifest.perturbation_names)}
        unknown = [name for name in names if name not in row]
        if unknown:
            raise UnknownPerturbationError(unknown, [name for name in row if name != self.manifest.control])
        return self.features[[row[name] for name in names]]


def save_checkpoint(
    path: Path,
    *,
    manifest: Manifest,
    weights: Mapping[str, torch.Tensor],
    features: torch.Tensor,
    controls: ControlSet | None = None,
    effects: TrainingEffects | None = None,
) -> Manifest:
    """Write one `.safetensors` file atomically; returns the manifest with digests and control counts filled in."""
    tensors, complete = packed(path, manifest, weights, features, controls, effects)
    with atomic_tensors(path) as partial:
        save_file(tensors, partial, metadata=complete.to_metadata())
    return complete


def packed(
    path: Path,
    manifest: Manifest,
    weights: Mapping[str, torch.Tensor],
    features: torch.Tensor,
    controls: ControlSet | None,
    effects: TrainingEffects | None,
) -> tuple[dict[str, torch.Tensor], Manifest]:
    """All tensors of a checkpoint file, and its manifest with digests and control counts; what contradicts itself is an error."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    tensors[FEATURES] = features.detach().to("cpu", torch.float32).contiguous()
    num_controls: dict[str, int] = {}
    if controls is not None:
        tensors |= _pack_controls(controls, manifest)
        names, counts = np.unique(controls.cell_types, return_counts=True)
        num_controls = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    facts: dict[str, Any] | None = None
    if effects is not None:
        arrays, facts = effects.to_arrays()
        tensors |= {EFFECTS + name: torch.from_numpy(array) for name, array in arrays.items()}
    manifest = manifest.model_copy(update={"training_effects": facts})
    problems = _inconsistencies(manifest)
    if effects is not None and manifest.output_genes is not None and effects.num_genes != len(manifest.output_genes):
        problems.append(
            f"training effects have {counted(effects.num_genes, 'gene')}, output_genes {len(manifest.output_genes)}"
        )
    if problems:
        raise CheckpointError(f"{path} is not written: its description contradicts itself", problems)
    require_finite_tensors(tensors, path)
    digests = tensor_digests(tensors)
    complete = manifest.model_copy(update={"tensors": digests, "num_controls": num_controls})
    return tensors, complete


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint: header, metadata digest, tensor names, shapes, digests, finite values.

    Nothing is executed. Raises `CheckpointError`.
    """
    path = Path(path)
    tensors, manifest, digest = read_tensors(path)
    return assembled(path, tensors, manifest, digest)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], Manifest, str]:
    """All tensors of a checkpoint file, verified, its manifest and digest; errors as `load_checkpoint`."""
    header = read_header(path)
    metadata = header.get("__metadata__") or {}
    manifest = parse_metadata(metadata, path)
    tensors = stored_tensors(path, header)
    verify(tensors, manifest, path, tensor_digests(tensors))
    return tensors, manifest, metadata["steval_sha256"]


def assembled(path: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest, digest: str) -> Checkpoint:
    """The checkpoint that verified `tensors` make."""
    return Checkpoint(
        path=path,
        manifest=manifest,
        weights={name: tensor for name, tensor in tensors.items() if "/" not in name},
        features=tensors[FEATURES],
        controls=_unpack_controls(tensors, manifest, path),
        digest=digest,
        effects=_unpack_effects(tensors, manifest, path),
    )


def stored_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a header that `read_header` has checked, each read straight into memory of its own.

    A mapped file would stay in memory beside them until the last is copied; and where the file puts a tensor (its alignment)
    would change the last digits of products.
    """
    with path.open("rb") as handle:
        begin = 8 + int.from_bytes(handle.read(8), "little")

    def read(entry: Mapping[str, Any]) -> torch.Tensor:
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        content = tensor.view(-1).view(torch.uint8).numpy()
        with path.open("rb") as handle:
            handle.seek(begin + entry["data_offsets"][0])
            if handle.readinto(content) != len(content):
                raise CheckpointError(f"{path} became shorter while it was read")
        return tensor

    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        return dict(zip(entries, _side_by_side(read, entries.values()), strict=True))
    except (OSError, RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _side_by_side(function: Callable[[_In], _Out], values: Iterable[_In]) -> list[_Out]:
    """`function` of each value, in threads: reading and digesting let go of the interpreter."""
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(function, values))


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def choose_controls(cell_types: np.ndarray, rng: np.random.Generator, limit: int = MAX_DEFAULT_CONTROLS) -> np.ndarray:
    """Row numbers of at most `limit` cells of each cell type, drawn without replacement, in file order."""
    chosen = [rng.permutation(np.flatnonzero(cell_types == name))[:limit] for name in np.unique(np.asarray(cell_types))]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _pack_controls(controls: ControlSet, manifest: Manifest) -> dict[str, torch.Tensor]:
    cells = sp.csr_matrix(controls.cells, dtype=np.float32)
    codes = {"cell_type": (controls.cell_types, manifest.cell_types), "batch": (controls.batches, manifest.batches)}
    packed = {
        CONTROLS + "data": torch.from_numpy(cells.data.copy()),
        CONTROLS + "indices": torch.from_numpy(cells.indices.astype(np.int32)),
        CONTROLS + "indptr": torch.from_numpy(cells.indptr.astype(np.int64)),
    }
    for what, (labels, names) in codes.items():
        code = {name: index for index, name in enumerate(names)}
        unknown = sorted({str(label) for label in labels} - set(code)) if names else []
        if unknown:
            raise CheckpointError(f"control cells have a {what} that the manifest lacks: {listed(unknown, 5)}")
        packed[CONTROLS + what] = torch.tensor([code.get(str(label), 0) for label in labels], dtype=torch.int32)
    return packed


def _unpack_controls(tensors: Mapping[str, torch.Tensor], manifest: Manifest, path: Path) -> ControlSet | None:
    """The default control set, checked entry by entry; None where the file has none."""
    found = {name.removeprefix(CONTROLS): tensor for name, tensor in tensors.items() if name.startswith(CONTROLS)}
    if not found:
        return None
    whole_numbers = {"indices", "indptr", "cell_type", "batch"}
    if found.keys() != whole_numbers | {"data"} or any(
        tensor.dim() != 1 or tensor.is_floating_point() == (name in whole_numbers) for name, tensor in found.items()
    ):
        raise CheckpointError(
            f"{path}: its default control set needs vectors data, indices, indptr, cell_type and batch"
        )
    parts = {name: tensor.numpy() for name, tensor in found.items()}
    indptr, width = parts["indptr"].astype(np.int64), manifest.model.input_dim
    num_cells = len(indptr) - 1
    names = {"cell_type": manifest.cell_types, "batch": manifest.batches}
    sound = (
        num_cells >= 1
        and indptr[0] == 0
        and indptr[-1] == len(parts["data"]) == len(parts["indices"])
        and (np.diff(indptr) >= 0).all()
        and _within(parts["indices"], width)
        and all(len(parts[field]) == num_cells and _within(parts[field], len(names[field]) or 1) for field in names)
    )
    if not sound:
        raise CheckpointError(f"{path}: its default control set is not a valid sparse matrix with labels")
    cells = sp.csr_matrix((parts["data"].astype(np.float32), parts["indices"], indptr), shape=(num_cells, width))
    labels = [
        np.array(names[field], dtype=object)[parts[field]] if names[field] else np.full(num_cells, "", dtype=object)
        for field in ("cell_type", "batch")
    ]
    return ControlSet(cells=cells, cell_types=labels[0], batches=labels[1])


def _unpack_effects(tensors: Mapping[str, torch.Tensor], manifest: Manifest, path: Path) -> TrainingEffects | None:
    """The training effects, checked entry by entry; None where the file has none."""
    arrays = {name.removeprefix(EFFECTS): t.numpy() for name, t in tensors.items() if name.startswith(EFFECTS)}
    if not arrays and manifest.training_effects is None:
        return None
    try:
        effects = TrainingEffects.from_arrays(arrays, manifest.training_effects or {})
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if manifest.output_genes is None or effects.num_genes != len(manifest.output_genes):
        raise CheckpointError(
            f"{path}: its training effects have {counted(effects.num_genes, 'gene')}, not those of its output"
        )
    return effects


def _within(codes: np.ndarray, limit: int) -> bool:
    return not len(codes) or bool(codes.min() >= 0 and codes.max() < limit)


def verify(tensors: Mapping[str, torch.Tensor], manifest: Manifest, path: Path, digests: Mapping[str, str]) -> None:
    """Raise `CheckpointError` unless `tensors`, whose digests are `digests`, are those that the manifest means, in every way."""
    problems = _inconsistencies(manifest)
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith((CONTROLS, EFFECTS))}
    expected = _expected_shapes(manifest, len(found), path)
    problems += [f"missing tensor {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected tensor {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(found[name].shape)}, the model config says {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and tuple(found[name].shape) != shape
    ]
    problems += [
        f"{name} holds {tensor.dtype}, not floating point numbers"
        for name, tensor in sorted(found.items())
        if not tensor.is_floating_point()
    ]
    problems += [
        f"{name} does not match its digest" for name in sorted(tensors) if manifest.tensors.get(name) != digests[name]
    ]
    if problems:
        raise CheckpointError(f"{path} cannot be trusted", problems[:20])
    require_finite_tensors(tensors, path)


def _expected_shapes(manifest: Manifest, num_tensors: int, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes that the model config asks for; a config of more layers than there are tensors is not even built."""
    model = manifest.model
    depth = model.backbone.num_layers + model.num_encoder_layers + model.num_decoder_layers
    if depth > num_tensors:
        raise CheckpointError(
            f"{path} holds {counted(num_tensors, 'tensor')}, too few for the {counted(depth, 'layer')} of its model config"
        )
    try:
        with torch.device("meta"):
            state = StateTransition(model).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{path}: its model config cannot be built: {str(error).splitlines()[0]}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return {**shapes, FEATURES: (len(manifest.perturbations), model.pert_dim)}


def _inconsistencies(manifest: Manifest) -> list[str]:
    """Where the manifest contradicts itself: names that do not fit the network, or occur twice."""
    model, names = manifest.model, manifest.perturbation_names
    output_dim = model.gene_decoder.gene_dim if model.gene_decoder else model.output_dim
    lists = {
        "perturbations": tuple(names),
        "cell_types": manifest.cell_types,
        "batches": manifest.batches,
        "input_genes": manifest.input_genes or (),
        "output_genes": manifest.output_genes or (),
    }
    problems = [f"{what} holds a name twice" for what, found in lists.items() if len(set(found)) != len(found)]
    for what, genes, dim in (
        ("input_genes", manifest.input_genes, model.input_dim),
        ("output_genes", manifest.output_genes, output_dim),
    ):
        if genes is not None and len(genes) != dim:
            problems.append(f"{what} has {counted(len(genes), 'name')}, the model {dim}")
    if manifest.control not in names:
        problems.append(f"the control {manifest.control!r} is not among the perturbations")
    if manifest.decoding.asks_anchor and manifest.training_effects is None:
        problems.append("decoding asks for a simple model, but there are no training effects")
    if manifest.decoding.kind == "carried" and (manifest.output_genes is None or manifest.scale != "lognorm"):
        problems.append("decoding carries effects of genes on the lognorm scale, which this model does not predict")
    if model.batch_encoder and len(manifest.batches) != model.batch_dim:
        problems.append(
            f"batches has {counted(len(manifest.batches), 'name')}, the batch encoder {counted(model.batch_dim or 0, 'code')}"
        )
    return problems


def require_finite_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite values in {', '.join(sorted(broken)[:5])}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity show in the sum; a sum that overflows is looked into, value by value, at eight times the cost."""
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes, by name, sorted."""

    def digest(name: str) -> str:
        return hashlib.sha256(tensors[name].contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()

    names = sorted(tensors)
    return dict(zip(names, _side_by_side(digest, names), strict=True))
