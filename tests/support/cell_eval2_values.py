"""cell-eval2's values of pairs under its preset vcc2026, as JSON: run by an interpreter that has it, never imported.

usage: cell_eval2_values.py DIRECTORY [NAME ...]
Reads DIRECTORY/NAME.pred.h5ad and DIRECTORY/NAME.real.h5ad (all there are by default), writes name → values to stdout. Cells
with the obs column `context` are scored context by context: the name is then NAME/CONTEXT. A step that cell-eval2 refuses is its
message.
With pdex installed, its differential expression is pdex's, which agrees with the challenge's own engine on the continuity
correction; without, it is scanpy's, which has none.
"""

import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import anndata as ad
from cell_eval2.anchor import compute_replicate_anchor
from cell_eval2.baseline import build_generic_baseline
from cell_eval2.config import EvalConfig
from cell_eval2.run import _materialize_de_sides, aggregate_metrics_wide, compute_metrics, metric_output_names
from cell_eval2.score import _reference_column, _replicate_entries


def main(directory: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    found = {}
    for name in names or sorted(path.name.removesuffix(".pred.h5ad") for path in directory.glob("*.pred.h5ad")):
        pred, real = (ad.read_h5ad(directory / f"{name}.{side}.h5ad") for side in ("pred", "real"))
        if "context" not in real.obs:
            found[name] = values(pred, real)
            continue
        for context in sorted(real.obs["context"].astype(str).unique()):
            sides = (cells[(cells.obs["context"].astype(str) == context).to_numpy()].copy() for cells in (pred, real))
            found[f"{name}/{context}"] = values(*sides)
    sys.stdout.write("\n" + json.dumps(found))


def values(pred: ad.AnnData, real: ad.AnnData) -> dict:
    config = replace(EvalConfig.from_preset("vcc2026"), pert_col="target_gene", cache_strict=False)
    found: dict = {}
    kept: dict = {}

    def metrics():
        frame = compute_metrics(pred.copy(), real.copy(), config=config)
        kept["means"] = means(aggregate_metrics_wide(frame, metrics=metric_output_names(config)))
        rows = [list(row) for row in frame.select("metric", "perturbation", "value").iter_rows()]
        return {"rows": rows, "means": kept["means"]}

    def p_values():
        arguments = dict.fromkeys(("de_real", "de_pred", "real_fp", "real_store", "pred_store"))
        tables = _materialize_de_sides(pred.copy(), real.copy(), cfg=config, **arguments)
        return {
            side: [list(row) for row in table.select("target", "feature", "p_value").iter_rows()]
            for side, table in zip(("real", "pred"), tables, strict=True)
        }

    def baseline():
        kept["b"] = means(build_generic_baseline(real.copy(), config=config, allow_degenerate=True).agg)
        return kept["b"]

    def replicate():
        _, kept["anchor"] = compute_replicate_anchor(real.copy(), config=config)
        return dict(zip(kept["anchor"]["metric"].to_list(), kept["anchor"]["replicate"].to_list(), strict=True))

    def score():
        entries = _replicate_entries(kept["b"], kept["anchor"])
        names, own = [*entries, "avg_score"], kept["means"]
        column = _reference_column(names, list(own.values()), list(own), entries, column="score", label="the scale")
        return dict(zip(names, column.to_list(), strict=True))

    for name, step in (("metrics", metrics), ("p", p_values), ("b", baseline), ("r", replicate), ("score", score)):
        try:
            found[name] = step()
        except (ValueError, KeyError) as error:  # a refusal is a value: the tests say whether it is right
            found[name] = f"{type(error).__name__}: {error}"
    return found


def means(table) -> dict:
    row = table.filter(table["statistic"] == "mean").drop("statistic")
    return dict(zip(row.columns, row.row(0), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
