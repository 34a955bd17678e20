"""Ways to make counts of predicted cells, scored by the challenge of 2026 (docs/decisions/007).

    python benchmarks/count_sampling.py SCREEN.h5ad CONTEXT DIR

SCREEN.h5ad: counts with `target_gene` and `cell_type`. CONTEXT is held out: its perturbations are told from the other cell types by
the default simple model, carried by its control cells, made counts in each way, and scored against its measured cells.
"""

import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.effects.anchors import Anchors, AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.measure import measure_file
from steval.predictor.cells.counts import draw_counts, round_counts

TARGET_SUM = 4000.0
CONTROL = "non-targeting"
MOST_FOLD, MOST_DISPERSION = 50.0, 20.0
PROFILE = (
    "pds_cosine", "expr_mse_unbiased_capped_norm", "de_wilcoxon_direction_fidelity_yield_raw", "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard", "de_wilcoxon_lfc_nmae",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """Cells of one perturbation before they are counts."""

    carried: sp.csr_matrix
    """Lognorm `[n, G]`."""
    controls: np.ndarray
    """Counts of the cells that carry them `[n, G]`."""
    dispersion: np.ndarray
    """Of the negative binomial `[G]`, over all control cells."""
    rng: np.random.Generator

    @property
    def depths(self) -> np.ndarray:
        return self.controls.sum(axis=1)

    @property
    def linear(self) -> np.ndarray:
        return np.expm1(self.carried.toarray().astype(np.float64))

    @property
    def means(self) -> np.ndarray:
        """Expected counts: the mean profile at each cell's depth."""
        share = (self.linear / self.linear.sum(axis=1, keepdims=True)).mean(axis=0)
        return share * self.depths[:, None]


def rounded(told: Told) -> np.ndarray:
    return round_counts(told.carried, told.depths, told.rng.random(len(told.depths))).toarray()


def rounded_at_controls_scale(told: Told) -> np.ndarray:
    depths = np.rint(told.depths * told.linear.sum(axis=1) / TARGET_SUM)
    return round_counts(told.carried, depths, told.rng.random(len(depths))).toarray()


def rounded_each(told: Told) -> np.ndarray:
    counts = told.linear / TARGET_SUM * told.depths[:, None]
    return np.floor(counts + told.rng.random(counts.shape))


def multinomial(told: Told) -> np.ndarray:
    return draw_counts(told.carried.toarray(), told.depths, told.rng)


def thinned(told: Told) -> np.ndarray:
    base = (told.controls / told.depths[:, None]).mean(axis=0)
    share = told.means[0] / told.depths[0]
    fold = np.minimum(np.where(base > 0, share / np.maximum(base, 1e-12), 1.0), MOST_FOLD)
    kept = told.rng.binomial(told.controls.astype(np.int64), np.minimum(fold, 1.0))
    return kept + told.rng.poisson(told.controls * np.maximum(fold - 1.0, 0.0))


def poisson(told: Told) -> np.ndarray:
    return told.rng.poisson(told.means)


def negative_binomial(told: Told) -> np.ndarray:
    size = 1.0 / np.maximum(told.dispersion, 1e-6)
    return told.rng.poisson(told.means * told.rng.gamma(size, 1.0 / size, told.means.shape))


WAYS: dict[str, Callable[[Told], np.ndarray]] = {
    "rounded": rounded,
    "rounded-controls-scale": rounded_at_controls_scale,
    "rounded-each": rounded_each,
    "multinomial": multinomial,
    "thinned": thinned,
    "poisson": poisson,
    "negative-binomial": negative_binomial,
}


def main() -> None:
    screen, context, directory = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    directory.mkdir(parents=True, exist_ok=True)
    cells = ad.read_h5ad(screen)
    is_held = (cells.obs["cell_type"].astype(str) == context).to_numpy()
    real = cells[is_held].copy()
    real.write_h5ad(directory / "real.h5ad")
    told = tell(cells, is_held, context)
    for way, sample in WAYS.items():
        path = directory / f"{way}.h5ad"
        blocks = [sp.csr_matrix(sample(one).astype(np.float32)) for one in told.values()]
        labels = np.repeat(list(told), [block.shape[0] for block in blocks])
        obs = pd.DataFrame({"target_gene": labels, "cell_type": context}, index=[f"p{n}" for n in range(len(labels))])
        ad.AnnData(sp.vstack(blocks).tocsr(), obs=obs, var=real.var[[]]).write_h5ad(path)
        scored = directory / f"score-{way}"
        steval = [
            sys.executable,
            "-m",
            "steval",
            "score",
            path,
            "--real",
            directory / "real.h5ad",
            "--profile",
            "vcc2026",
        ]
        subprocess.run([*steval, "-o", scored, "--cache-dir", directory / "cache"], check=True, capture_output=True)
        members = (
            pd.read_csv(scored / "breakdown.csv").groupby("metric")[["value", "normalised"]].mean().loc[list(PROFILE)]
        )
        shown = " ".join(f"{value:.3f} ({scaled:+.2f})" for value, scaled in members.to_numpy())
        print(f"{way:24s} {shown} -> {members['normalised'].mean():.3f}", flush=True)


def tell(cells: ad.AnnData, is_held: np.ndarray, context: str) -> dict[str, Told]:
    """The held-out perturbations, as many cells of each as were measured."""
    counts, labels = cells.X.tocsr(), cells.obs["target_gene"].astype(str).to_numpy()
    values = lognorm(counts, TARGET_SUM)
    train = ad.AnnData(values[~is_held], obs=cells.obs[~is_held].copy(), var=cells.var[[]].copy())
    record, _ = measure_file(CellFile.wrap(train), Columns(batch=None))
    anchors, settings = Anchors(record, AnchorSettings()), DecodingSettings(kind="carried")
    controls = np.flatnonzero(is_held & (labels == CONTROL))
    mean = np.asarray(values[controls].mean(axis=0), dtype=np.float64).ravel()
    dispersion = measured_dispersion(counts[controls])
    found = {}
    for name in sorted(set(labels[is_held]) - {CONTROL}):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        rows = rng.choice(controls, int((is_held & (labels == name)).sum()), replace=False)
        effect = anchors.effects([name], context, mean)[0]
        carried = settings.carried(values[rows], mean, effect, rng, TARGET_SUM).cells
        found[name] = Told(carried, counts[rows].toarray(), dispersion, rng)
    return found


def measured_dispersion(counts: sp.csr_matrix) -> np.ndarray:
    """(variance - mean) / mean² of each gene at the cells' mean depth."""
    dense = counts.toarray()
    depths = dense.sum(axis=1, keepdims=True)
    scaled = dense / depths * depths.mean()
    mean = scaled.mean(axis=0)
    return np.clip((scaled.var(axis=0) - mean) / np.maximum(mean**2, 1e-12), 0.0, MOST_DISPERSION)


if __name__ == "__main__":
    main()
