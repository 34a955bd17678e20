"""A running service in a notebook: the same predictions as `sv.load(…).predict`, made elsewhere."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anndata as ad

from steval.data.cells.cellfile import read_anndata
from steval.notebook.showing import Facts, as_html, as_text, listed
from steval.predictor.asked import AskedPredictions, build_request
from steval.service.client import ServiceClient


class RemoteModel:
    """The model of a service; `sv.connect` makes one. `client` has everything else that a service can do."""

    def __init__(self, client: ServiceClient):
        self.client = client
        self.card: dict[str, Any] = client.model()
        self.vocabulary = client.vocabulary()

    @property
    def perturbations(self) -> list[str]:
        """Names that can be asked for, the control left out."""
        return [name for name in self.vocabulary.names if name != self.vocabulary.control]

    def predict(
        self,
        what: str | Sequence[str] | None = None,
        cells: int = 100,
        *,
        cell_type: str | Sequence[str] | None = None,
        seed: int = 0,
        output: Literal["cells", "mean"] = "cells",
        decoding: Literal["checkpoint", "network", "carried"] = "checkpoint",
    ) -> ad.AnnData:
        """Predicted cells `[n, G]`, as `sv.load(…).predict` with these arguments and the checkpoint's own controls."""
        asked = AskedPredictions.parse(
            {
                "perturbations": (what,) if isinstance(what, str) else tuple(what or ()),
                "cells": cells,
                "cell_types": (cell_type,) if isinstance(cell_type, str) else tuple(cell_type or ()),
                "seed": seed,
                "output": output,
                "decoding": decoding,
            },
            source="the arguments of predict",
        )
        request = build_request(asked, self.vocabulary)
        items = [item.model_dump(mode="json", exclude_none=True) for item in request.items]
        with tempfile.TemporaryDirectory(prefix="steval-answer-") as directory:
            path = Path(directory) / "predictions.h5ad"
            self.client.save_predictions(path, items, seed=seed, output=output, decoding=decoding)
            return read_anndata(path)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _facts(self) -> Facts:
        return [
            ("service", self.client.url),
            ("model", self.card["name"]),
            ("perturbations", listed(self.perturbations)),
            ("genes", f"{self.card['num_genes']:,}"),
            ("cell types", listed(self.card["cell_types"])),
            ("licence", self.card["licence"] or "not recorded"),
            ("evidence", self.card.get("evidence")),
        ]

    def __repr__(self) -> str:
        return as_text("steval model of a service", self._facts())

    def _repr_html_(self) -> str:
        return as_html("steval model of a service", self._facts())


def connect(url: str, api_key: str | None = None, **options: Any) -> RemoteModel:
    """The model of the service at `url`; `options` are those of `steval.service.client.ServiceClient`."""
    return RemoteModel(ServiceClient(url, api_key, **options))
