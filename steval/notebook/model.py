"""A checkpoint in a notebook: what it is, and its predictions as AnnData."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import anndata as ad

from steval.checkpoints.evidence import evidence_sentence
from steval.checkpoints.location import locate_checkpoint
from steval.checkpoints.store import Checkpoint, load_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions, unique_labels
from steval.errors import ConfigError
from steval.notebook.cells import CellsInput, opened
from steval.notebook.showing import Facts, as_html, as_text, listed
from steval.predictor.asked import AskedPredictions, build_request
from steval.predictor.controls import ControlPool, cell_controls, checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.output import OutputOptions, gather_predictions, takes_sparse_cells
from steval.predictor.request_files import items_like, of_cell_types
from steval.predictor.requests import PredictionRequest, PredictionVocabulary, require_known


class Model:
    """A checkpoint that is loaded and verified; `sv.load` makes one.

    `device`: auto, cpu, cuda, cuda:N. The network is put there when something is predicted first.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto"):
        self.checkpoint = checkpoint
        self.device = device

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.checkpoint.path)

    @property
    def perturbations(self) -> list[str]:
        """Names that can be asked for, the control left out."""
        manifest = self.checkpoint.manifest
        return [name for name in manifest.perturbation_names if name != manifest.control]

    @property
    def genes(self) -> list[str]:
        """Names of the predicted genes; empty where an embedding is predicted."""
        return list(self.checkpoint.manifest.output_genes or ())

    @property
    def evidence(self) -> str:
        """How good its predictions are, as far as it is on record."""
        return evidence_sentence(self.checkpoint.manifest)

    def predict(
        self,
        what: CellsInput | Sequence[str] | None = None,
        cells: int = 100,
        *,
        controls: CellsInput | None = None,
        cell_type: str | Sequence[str] | None = None,
        seed: int = 0,
        output: Literal["cells", "mean"] = "cells",
        decoding: Literal["checkpoint", "network", "carried"] = "checkpoint",
        include_controls: bool | None = None,
    ) -> ad.AnnData:
        """Predicted cells `[n, G]` on the checkpoint's scale, with the measured controls that `steval score` wants beside them.

        `what`: names of perturbations (`cells` cells of each), an AnnData or h5ad (its perturbations, cell types and numbers of
        cells, from its own control cells), or None: all known perturbations. `controls`: measured cells to start from, in place of
        the checkpoint's own. `cell_type`: one or several, `"all"`, or None where the controls have one only. The same as
        `steval predict` writes with these options; `obs["predicted"]` tells predicted from measured cells. Raises `ConfigError`,
        `DataError` or `UnknownPerturbationError`.
        """
        with ExitStack() as stack:
            given = _cells_in(what)
            like = None if given is None else stack.enter_context(opened(given, "the cells"))
            pool = stack.enter_context(self._controls(stack, controls, like))
            common = {"seed": seed, "output": output, "decoding": decoding}
            request = (
                self._named(what, cells, _several(cell_type), pool, common)
                if like is None
                else self._as_in(like, _several(cell_type), pool, common)
            )
            plan = self._predictor.plan(request, pool)
            options = OutputOptions(include_controls=include_controls)
            blocks = self._predictor.blocks(plan, sparse=takes_sparse_cells(plan, options))
            return gather_predictions(plan, blocks, self._predictor.facts_of(plan, "steval.load(…).predict"), options)

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.checkpoint, device=self.device)

    def _controls(self, stack: ExitStack, controls: CellsInput | None, like: CellFile | None) -> ControlPool:
        manifest = self.checkpoint.manifest
        if controls is not None:
            return cell_controls(stack.enter_context(opened(controls, "the control cells")), manifest)
        if like is not None:
            column = (like.record.get("columns") or {}).get("perturbation", manifest.columns.perturbation)
            if column in like.obs and manifest.control in unique_labels(like.obs[column]):
                return cell_controls(like, manifest)
        return checkpoint_controls(self.checkpoint)

    def _named(
        self, what: Any, cells: int, cell_types: tuple[str, ...], pool: ControlPool, common: dict[str, Any]
    ) -> PredictionRequest:
        names = (what,) if isinstance(what, str) else tuple(what or ())
        manifest = self.checkpoint.manifest
        asked = {"perturbations": names, "cells": cells, "cell_types": cell_types, **common}
        vocabulary = PredictionVocabulary(
            manifest.perturbation_names, manifest.control, pool.cell_type_names, manifest.columns
        )
        return build_request(AskedPredictions.parse(asked, source="the arguments of predict"), vocabulary)

    def _as_in(
        self, like: CellFile, cell_types: tuple[str, ...], pool: ControlPool, common: dict[str, Any]
    ) -> PredictionRequest:
        manifest = self.checkpoint.manifest
        items = items_like(like, ColumnOptions(), manifest.columns)
        items = of_cell_types(items, cell_types, pool.cell_type_names, like.name)
        require_known([item.perturbation for item in items], manifest.perturbation_names, manifest.control)
        return PredictionRequest.parse({"items": items, **common}, source="the arguments of predict")

    def _facts(self) -> Facts:
        manifest = self.checkpoint.manifest
        return [
            ("file", self.path),
            ("perturbations", listed(self.perturbations)),
            ("genes", listed(self.genes) if self.genes else f"an embedding of {manifest.model.prediction_dim}"),
            (
                "scale",
                f"{manifest.scale}, target_sum {manifest.target_sum:g}" if manifest.target_sum else manifest.scale,
            ),
            ("cell types", listed(list(manifest.cell_types)) if manifest.cell_types else None),
            ("licence", manifest.licence or "not recorded"),
            ("evidence", self.evidence),
        ]

    def __repr__(self) -> str:
        return as_text("steval model", self._facts())

    def _repr_html_(self) -> str:
        return as_html("steval model", self._facts())


def load(path: Path | str, *, device: str = "auto") -> Model:
    """A checkpoint: a `.safetensors` file, a run directory (its best one) or `hf://owner/repo@revision/path`.

    It is verified before anything of it runs. Raises `CheckpointError`.
    """
    return Model(load_checkpoint(locate_checkpoint(path)), device)


def _cells_in(what: Any) -> CellsInput | None:
    """Cells that are to be predicted like; None where names are given, or nothing."""
    if isinstance(what, ad.AnnData | Path) or (isinstance(what, str) and what.endswith((".h5ad", ".h5"))):
        return what
    if what is None or isinstance(what, str | Sequence):
        return None
    raise ConfigError(f"predict takes names of perturbations, an AnnData or an h5ad path, got {type(what).__name__}")


def _several(cell_type: str | Sequence[str] | None) -> tuple[str, ...]:
    return (cell_type,) if isinstance(cell_type, str) else tuple(cell_type or ())
