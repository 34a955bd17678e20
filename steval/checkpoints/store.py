"""The one-file checkpoint: safetensors with weights, perturbation features, default controls and the manifest. No pickle."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steval.checkpoints.manifest import CONTROLS, FEATURES, Manifest, parse_metadata, read_header
from steval.data.files import atomic_path
from steval.errors import CheckpointError, UnknownPerturbationError
from steval.model.config import Attention
from steval.model.network import StateTransition

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
    `controls` None where the file carries none. `digest` is the sha256 over the manifest and so over every tensor's digest.
    """

    path: Path
    manifest: Manifest
    weights: Mapping[str, torch.Tensor]
    features: torch.Tensor
    controls: ControlSet | None
    digest: str

    def network(self, attention: Attention | None = None) -> StateTransition:
        """The network with these weights, in eval mode on the CPU; `attention` overrides the recorded regime."""
        config = self.manifest.model
        if attention is not None:
            config = config.model_copy(update={"attention": attention})
        with torch.device("meta"):
            network = StateTransition(config)
        network.load_state_dict(dict(self.weights), strict=True, assign=True)
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
) -> Manifest:
    """Write one `.safetensors` file atomically; returns the manifest with digests and control counts filled in."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    tensors[FEATURES] = features.detach().to("cpu", torch.float32).contiguous()
    num_controls: dict[str, int] = {}
    if controls is not None:
        tensors |= _pack_controls(controls, manifest)
        names, counts = np.unique(controls.cell_types, return_counts=True)
        num_controls = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    _require_finite(tensors, path)
    digests = {name: _tensor_digest(tensor) for name, tensor in sorted(tensors.items())}
    complete = manifest.model_copy(update={"tensors": digests, "num_controls": num_controls})
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata=complete.to_metadata())
    return complete


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint: header, metadata digest, tensor names, shapes, digests, finite values.

    Nothing is executed. Raises `CheckpointError`.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.get("__metadata__") or {}
    manifest = parse_metadata(metadata, path)
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    _verify(tensors, manifest, path)
    weights = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    return Checkpoint(
        path=path,
        manifest=manifest,
        weights=weights,
        features=tensors[FEATURES],
        controls=_unpack_controls(tensors, manifest),
        digest=metadata["steval_sha256"],
    )


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
    for field, (labels, names) in codes.items():
        code = {name: index for index, name in enumerate(names)}
        unknown = sorted({str(label) for label in labels} - set(code)) if names else []
        if unknown:
            raise CheckpointError(f"control cells have a {field} that the manifest lacks: {', '.join(unknown[:5])}")
        packed[CONTROLS + field] = torch.tensor([code.get(str(label), 0) for label in labels], dtype=torch.int32)
    return packed


def _unpack_controls(tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> ControlSet | None:
    if CONTROLS + "indptr" not in tensors:
        return None
    parts = {name: tensors[CONTROLS + name].numpy() for name in ("data", "indices", "indptr", "cell_type", "batch")}
    indptr, width = parts["indptr"], manifest.model.input_dim
    num_cells = len(indptr) - 1
    sound = (
        num_cells >= 1
        and indptr[0] == 0
        and indptr[-1] == len(parts["data"]) == len(parts["indices"])
        and (np.diff(indptr) >= 0).all()
        and (not len(parts["indices"]) or 0 <= parts["indices"].min() <= parts["indices"].max() < width)
        and len(parts["cell_type"]) == len(parts["batch"]) == num_cells
    )
    if not sound:
        raise CheckpointError("the default control set of the checkpoint is not a valid sparse matrix")
    cells = sp.csr_matrix((parts["data"], parts["indices"], indptr), shape=(num_cells, width))
    labels = [
        np.array(names, dtype=object)[parts[field]] if names else np.full(num_cells, "", dtype=object)
        for field, names in (("cell_type", manifest.cell_types), ("batch", manifest.batches))
    ]
    return ControlSet(cells=cells, cell_types=labels[0], batches=labels[1])


def _verify(tensors: Mapping[str, torch.Tensor], manifest: Manifest, path: Path) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in StateTransition(manifest.model).state_dict().items()}
    expected[FEATURES] = (len(manifest.perturbations), manifest.model.pert_dim)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith(CONTROLS)}
    problems = [f"missing tensor {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected tensor {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(found[name])}, the model config says {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and found[name] != shape
    ]
    problems += [
        f"{name} does not match its digest"
        for name, tensor in sorted(tensors.items())
        if manifest.tensors.get(name) != _tensor_digest(tensor)
    ]
    if problems:
        raise CheckpointError(f"{path} cannot be trusted", problems[:20])
    _require_finite(tensors, path)


def _require_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    broken = [
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite values in {', '.join(sorted(broken)[:5])}")


def _tensor_digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
