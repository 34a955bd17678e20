"""`uns["steval"]`: what steval writes into every file it makes, so that nothing has to be guessed later."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from steval import __version__
from steval.data.columns import Columns

KEY = "steval"


def steval_record(
    *, made_by: str, scale: str, target_sum: float | None, columns: Columns, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The value of `uns["steval"]`: plain scalars, column names as a mapping, `details` as JSON text."""
    record: dict[str, Any] = {
        "version": __version__,
        "made_by": made_by,
        "scale": scale,
        "columns": {field: name for field, name in columns.as_dict().items() if isinstance(name, str)},
    }
    if target_sum is not None:
        record["target_sum"] = float(target_sum)
    if details:
        record["details"] = json.dumps(details, sort_keys=True, default=_plain)
    return record


def read_record(uns: Mapping[str, Any]) -> dict[str, Any]:
    """`uns["steval"]` as plain Python values, `details` parsed; empty where a file has none."""
    raw = uns.get(KEY)
    if not isinstance(raw, Mapping):
        return {}
    record = {str(key): _plain(value) for key, value in raw.items()}
    if isinstance(record.get("columns"), Mapping):
        record["columns"] = {str(key): str(value) for key, value in record["columns"].items()}
    if isinstance(record.get("details"), str):
        record["details"] = json.loads(record["details"])
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value
