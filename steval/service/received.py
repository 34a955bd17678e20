"""What a client makes of answers: mean profiles, and cells of an Arrow stream, whole or not at all.

Arrays need numpy, and single cells pyarrow: both are imported when they are needed, since the client is installed without them.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from steval.errors import ConfigError, ServiceError
from steval.service.forms import ARROW_KEY, END_KEY

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class PredictedMeans:
    """Mean profiles: `means [P, G]` float32 in the order of `perturbations` and `genes`; `facts` has scale, seed, digest."""

    genes: list[str]
    perturbations: list[str]
    means: "np.ndarray"
    controls: "dict[str, np.ndarray]"
    """Measured mean of the controls by cell type, `[G]` float32."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class PredictedCells:
    """Predicted cells: `cells [n, G]` float32 with a label for each row."""

    genes: list[str]
    cells: "np.ndarray"
    perturbations: list[str]
    cell_types: list[str]
    control_cells: list[str]
    facts: dict[str, Any]


def means_of(answer: dict[str, Any]) -> PredictedMeans:
    """The profiles of the JSON answer of `POST /predict`."""
    np = _needed("numpy", "predict gives lists")
    facts = dict(answer)
    predictions = facts.pop("predictions")
    controls = {one["cell_type"]: np.array(one["mean"], dtype=np.float32) for one in facts.pop("controls")}
    return PredictedMeans(
        genes=facts.pop("genes"),
        perturbations=[one["perturbation"] for one in predictions],
        means=np.array([one["mean"] for one in predictions], dtype=np.float32),
        controls=controls,
        facts=facts,
    )


def require_for_means() -> None:
    """A `ConfigError` where `means_of` lacks a package; to be called before a service is asked."""
    _needed("numpy", "predict gives lists")


def require_for_cells() -> None:
    """A `ConfigError` where `cells_of` lacks a package; to be called before a service is asked."""
    for package in ("numpy", "pyarrow"):
        _needed(package, "save_predictions writes an h5ad")


def cells_of(content: bytes) -> PredictedCells:
    """The cells of an Arrow stream; one that was cut off is a `ServiceError`."""
    table = whole_table(content)
    facts = json.loads(table.schema.metadata[ARROW_KEY])
    genes = facts.pop("genes")
    expression = table["expression"].combine_chunks()
    return PredictedCells(
        genes=genes,
        cells=expression.flatten().to_numpy(zero_copy_only=False).reshape(len(table), len(genes)),
        perturbations=table["perturbation"].to_pylist(),
        cell_types=table["cell_type"].to_pylist(),
        control_cells=table["control_cell"].to_pylist(),
        facts=facts,
    )


def whole_table(content: bytes) -> "pa.Table":
    """The rows of an Arrow stream whose end marker is there and agrees."""
    pa = _needed("pyarrow", "save_predictions writes an h5ad")
    cut_off = ServiceError("the service's answer was cut off before its end; ask again", status=502, code="cut_off")
    batches, num_rows, marker = [], 0, None
    try:
        reader = pa.ipc.open_stream(content)
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            end = dict(metadata or {}).get(END_KEY)
            marker = None if end is None else int(end)
            num_rows += batch.num_rows
            batches.append(batch)
        schema = reader.schema
    except (pa.ArrowInvalid, OSError) as error:
        raise cut_off from error
    if marker != num_rows:
        raise cut_off
    return pa.Table.from_batches(batches, schema)


def _needed(package: str, instead: str) -> Any:
    """A package that `steval-client` comes without; where it is not installed, a `ConfigError` that says what does without."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"arrays need {package}, which is not installed: pip install {package}; or without: {instead}"
        ) from error
