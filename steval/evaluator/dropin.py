"""`MetricsEvaluator` with cell_eval 0.8.2's arguments, methods, frames and files, computed by this room's engine.

It is a subclass of cell_eval's (MIT licence, Arc Research Institute): reading, checking and the ceiling's halves are
inherited, differential expression and metrics are replaced. What the engine does not cover (counts kept as they are,
unusual pdex options, repeated gene names, cells without a label, metrics that a user registered, a comparison that a user
put in place), or cannot compute, goes through cell_eval's own code: every call that works there works here, and one that
fails there fails with the same error.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp
from cell_eval import MetricPipeline, PerturbationAnndataPair, metrics_registry
from cell_eval import MetricsEvaluator as CellEvalEvaluator
from cell_eval._evaluator import _load_or_build_de, _spearman_brown_correct
from cell_eval._types import initialize_de_comparison
from cell_eval.metrics import MetricResult

from steval.data.cells.genes import GeneAlignment
from steval.data.cells.scale import ScaleRecord
from steval.data.columns import Columns
from steval.errors import StevalError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import StoredCells, group_rows, open_cells
from steval.evaluator.measure.de import DifferentialExpression
from steval.evaluator.measure.de_tables import compare
from steval.evaluator.measure.scan import Needs, SideTables, scan
from steval.evaluator.metrics.catalog import CATALOG
from steval.evaluator.metrics.functions import METRIC_ERRORS, Inputs
from steval.machine import num_cores

logger = logging.getLogger(__name__)

ENGINE_OPTIONS = {"reference", "groupby", "threads", "is_log1p", "epsilon", "geometric_mean", "cpm_filter"}
UPSTREAM_METRICS = {name: info.func for name, info in metrics_registry.metrics.items()}
"""cell_eval's functions as they were when this module was imported; a metric that a user replaced is not the engine's."""


class MetricsEvaluator(CellEvalEvaluator):
    """Drop-in for `cell_eval.MetricsEvaluator`; see there for the arguments."""

    def __init__(
        self,
        adata_pred: ad.AnnData | str | None,
        adata_real: ad.AnnData | str,
        de_pred: pl.DataFrame | str | None = None,
        de_real: pl.DataFrame | str | None = None,
        control_pert: str = "non-targeting",
        pert_col: str = "target",
        num_threads: int = -1,
        outdir: str = "./cell-eval-outdir",
        allow_discrete: bool = False,
        prefix: str | None = None,
        pdex_kwargs: dict[str, Any] | None = None,
        skip_de: bool = False,
    ):
        super().__init__(
            adata_pred, adata_real, de_pred, de_real, control_pert, pert_col, num_threads, outdir, allow_discrete,
            prefix, dict(pdex_kwargs or {}), skip_de=True,
        )  # fmt: skip
        self._skip_de = skip_de
        self._measured = _Measured(self.anndata_pair, self._threads(), allow_discrete)
        self.de_comparison = None
        if not (skip_de or self.ceiling_only):
            frames = self._de_frames(self._measured, {"real": de_real, "pred": de_pred}, outdir)
            self.de_comparison = initialize_de_comparison(real=frames["real"], pred=frames["pred"])
            self._measured.comparison = self.de_comparison

    def compute(
        self,
        profile: Any = "full",
        metric_configs: dict[str, dict[str, Any]] | None = None,
        skip_metrics: list[str] | None = None,
        basename: str = "results.csv",
        write_csv: bool = True,
        break_on_error: bool = False,
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Metrics of the prediction by perturbation, and their summary (`describe`); as cell_eval."""
        if self.ceiling_only:
            return super().compute()  # raises: there is no prediction
        pipeline = _Pipeline(self._measured, profile, metric_configs, break_on_error)
        results, summary = pipeline.run(self.de_comparison, self.anndata_pair, skip_metrics)
        if write_csv:
            self._write_results(results, summary, basename)
        return results, summary

    def compute_ceiling(
        self,
        profile: Any = "full",
        metric_configs: dict[str, dict[str, Any]] | None = None,
        skip_metrics: list[str] | None = None,
        basename: str = "ceiling_results.csv",
        write_csv: bool = True,
        break_on_error: bool = False,
        seed: int = 0,
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The data ceiling from two disjoint halves of the real cells; as cell_eval."""
        half_real, half_pred = self._disjoint_halves(seed)
        whole = self.anndata_pair
        halves = PerturbationAnndataPair(
            real=half_real,
            pred=half_pred,
            control_pert=whole.control_pert,
            pert_col=whole.pert_col,
            embed_key=whole.embed_key,
        )
        measured = _Measured(halves, self._threads(), self._allow_discrete)
        comparison = None
        if not self._skip_de:
            frames = self._de_frames(measured, {"real": None, "pred": None}, None)
            comparison = initialize_de_comparison(real=frames["real"], pred=frames["pred"])
            measured.comparison = comparison
        pipeline = _Pipeline(measured, profile, metric_configs, break_on_error)
        results, _ = pipeline.run(comparison, halves, skip_metrics)
        ceiling = _spearman_brown_correct(results.drop("perturbation").mean())
        if write_csv:
            self._write_results(results, ceiling, basename)
        return results, ceiling

    def _threads(self) -> int:
        wanted = self._pdex_kwargs.get("threads", self._num_threads)
        return min(wanted, num_cores()) if wanted and wanted > 0 else num_cores()

    def _de_frames(
        self, measured: "_Measured", given: Mapping[str, Any], outdir: str | None
    ) -> dict[str, pl.DataFrame]:
        """DE of both sides: read where given, else from the engine or pdex; written beside the results as cell_eval does."""
        frames = {}
        for which, source in given.items():
            found = None if source is not None else measured.differential_expression(which, self._pdex_kwargs)
            if found is not None:
                frames[which] = found
                if outdir is not None:
                    prefix = f"{self.prefix_of_files}_" if self.prefix_of_files else ""
                    frames[which].write_csv(Path(outdir) / f"{prefix}{which}_de.csv")
                continue
            frames[which] = _load_or_build_de(
                mode=which,  # ty: ignore[invalid-argument-type]
                de_path=source,
                anndata_pair=measured.anndata_pair,
                num_threads=self._num_threads,
                outdir=outdir,
                prefix=self.prefix,
                allow_discrete=self._allow_discrete,
                pdex_kwargs=dict(self._pdex_kwargs),
            )
        measured.frames.update({which: frames[which] for which in given if which not in measured.arrays})
        return frames

    @property
    def prefix_of_files(self) -> str | None:
        """The prefix as it stands in file names."""
        return self.prefix.replace("/", "-") if self.prefix else self.prefix


class _Measured:
    """One pair as the engine sees it: read once, tables kept."""

    def __init__(self, anndata_pair: PerturbationAnndataPair, threads: int, allow_discrete: bool):
        self.anndata_pair = anndata_pair
        self.comparison: Any = None
        """The DE comparison that was made of `arrays` and `frames`."""
        self.threads = threads
        self.arrays: dict[str, DifferentialExpression] = {}
        self.frames: dict[str, pl.DataFrame] = {}
        self._tables: dict[str, SideTables] = {}
        self._allow_discrete = allow_discrete

    @cached_property
    def pair(self) -> Pair | None:
        """The engine's view of the pair, made when it is first needed; None where the engine's assumptions do not hold."""
        if self._allow_discrete or not _is_plain(self.anndata_pair):
            return None
        try:
            return _as_pair(self.anndata_pair)
        except METRIC_ERRORS as error:
            logger.warning("these cells go through cell_eval's own code: %s", error)
            return None

    def covers(self, name: str, data: Any) -> bool:
        """Whether the engine has the values of metric `name` of `data`."""
        return (
            any(data is known for known in (self.comparison, self.anndata_pair))
            and name in CATALOG
            and metrics_registry.get_metric(name).func is UPSTREAM_METRICS[name]
            and self.pair is not None
        )

    def takes(self, pdex_kwargs: Mapping[str, Any]) -> bool:
        """Whether the engine computes what these pdex options ask for."""
        pair = self.anndata_pair
        return (
            self.pair is not None
            and set(pdex_kwargs) <= ENGINE_OPTIONS
            and pdex_kwargs.get("reference", pair.control_pert) == pair.control_pert
            and pdex_kwargs.get("groupby", pair.pert_col) == pair.pert_col
            and pdex_kwargs.get("is_log1p", True) is True
            and pdex_kwargs.get("geometric_mean", True) is True
            and pdex_kwargs.get("cpm_filter") is None
        )

    def differential_expression(self, which: str, pdex_kwargs: Mapping[str, Any]) -> pl.DataFrame | None:
        """pdex's frame, perturbations in the order of their categories; None where pdex itself has to make it."""
        if not self.takes(pdex_kwargs):
            return None
        try:
            de = self._scan(which, Needs(de=True, epsilon=pdex_kwargs.get("epsilon", 0.0))).de
        except StevalError as error:
            logger.warning("differential expression of the %s cells goes through pdex: %s", which, error)
            return None
        assert de is not None
        self.arrays[which] = de
        column = getattr(self.anndata_pair, which).obs[self.anndata_pair.pert_col]
        order = [str(name) for name in pd.Categorical(column).categories if str(name) in de.names]
        rows = np.array([de.names.index(name) for name in order])
        return replace(
            de,
            names=tuple(order),
            memberships=de.memberships[rows],
            target_mean=de.target_mean[rows],
            statistic=de.statistic[rows],
            p_value=de.p_value[rows],
        ).frame()

    def inputs(self, energy: bool) -> Inputs:
        """What the metrics read."""
        assert self.pair is not None
        for which in ("real", "pred"):
            if which not in self._tables:
                self._scan(which, Needs(energy=energy))
            if energy and self._tables[which].energy is None:
                found = scan(
                    self.pair.side(which), self.pair.control, self.pair.genes, Needs(energy=True), self.threads
                )
                self._tables[which] = replace(self._tables[which], energy=found.energy)
        sources = [self.arrays.get(which, self.frames.get(which)) for which in ("real", "pred")]
        comparison = None if sources[0] is None or sources[1] is None else compare(sources[0], sources[1])
        return Inputs(self.pair, self._tables["pred"], self._tables["real"], comparison)

    def _scan(self, which: str, needs: Needs) -> SideTables:
        assert self.pair is not None
        self._tables[which] = scan(self.pair.side(which), self.pair.control, self.pair.genes, needs, self.threads)  # ty: ignore[invalid-argument-type]
        return self._tables[which]


class _Pipeline(MetricPipeline):
    """cell_eval's pipeline with the engine's values. Options do not outlive it (in cell_eval they stay in its registry)."""

    def __init__(
        self, measured: _Measured, profile: Any, metric_configs: dict[str, dict[str, Any]] | None, break_on_error: bool
    ):
        super().__init__(profile=profile, break_on_error=break_on_error)
        self._metric_configs = metric_configs or {}
        self._measured = measured
        self._inputs: Inputs | None = None

    def run(
        self, comparison: Any, anndata_pair: PerturbationAnndataPair, skip_metrics: list[str] | None
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Results and their summary."""
        if skip_metrics is not None:
            self.skip_metrics(skip_metrics)
        self.compute_de_metrics(comparison)
        self.compute_anndata_metrics(anndata_pair)
        return self.get_results(), self.get_agg_results()

    def _compute_metric(self, name: str, data: Any) -> None:
        """The engine's value; where it has none, cell_eval's own, whose errors and log lines then are cell_eval's too."""
        if not self._measured.covers(name, data):
            super()._compute_metric(name, data)
            return
        try:
            value = self._value(name)
        except METRIC_ERRORS as error:
            logger.warning("metric '%s' goes through cell_eval's own code: %s", name, error)
            super()._compute_metric(name, data)
            return
        if not isinstance(value, dict):
            value = dict.fromkeys(data.get_perts(include_control=False), value)
        for perturbation, found in value.items():
            parts = {f"{name}_{part}": one for part, one in found.items()} if isinstance(found, dict) else {name: found}
            self._results += [
                MetricResult(name=column, value=one, perturbation=perturbation) for column, one in parts.items()
            ]

    def _value(self, name: str) -> Any:
        metric = CATALOG[name]
        chosen = {**(metrics_registry.get_metric(name).kwargs or {}), **self._metric_configs.get(name, {})}
        if self._inputs is None:
            self._inputs = self._measured.inputs(energy="pearson_edistance" in self._metrics)
        return metric.function(metric.resolved(chosen), self._inputs)


def _is_plain(pair: PerturbationAnndataPair) -> bool:
    """Whether the engine's assumptions hold: unique gene names, a text label on every cell."""
    columns = [adata.obs[pair.pert_col] for adata in (pair.real, pair.pred)]
    labelled = all(not column.isna().any() and (column.astype(str) != "").all() for column in columns)
    return (
        labelled
        and len(set(pair.genes)) == len(pair.genes)
        and all(np.isfinite(_values(a)).all() for a in (pair.real, pair.pred))
    )


def _values(adata: ad.AnnData) -> np.ndarray:
    matrix: Any = adata.X
    return matrix.data if sp.issparse(matrix) else np.asarray(matrix)


def _as_pair(pair: PerturbationAnndataPair) -> Pair:
    """The engine's view of an AnnData pair that cell_eval has checked and made lognorm."""
    genes = tuple(str(gene) for gene in pair.genes)
    identity = GeneAlignment(genes, np.arange(len(genes)), (), 0, False)
    sides = {}
    for which in ("pred", "real"):
        adata = getattr(pair, which)
        cells, dense = open_cells(adata, which)
        sides[which] = StoredCells(which, cells, group_rows(adata.obs[pair.pert_col]), identity, dense)
    scale = ScaleRecord("lognorm", None, False, "as cell_eval took it")
    return Pair(
        pred=sides["pred"],
        real=sides["real"],
        columns=Columns(perturbation=pair.pert_col, control=pair.control_pert, cell_type=None, batch=None),
        genes=genes,
        perturbations=tuple(str(name) for name in pair.perts),
        scale_pred=scale,
        scale_real=scale,
    )
