#!/usr/bin/env python
"""Scoring against cell-eval in one run: wall time and peak memory of whole processes, imports included.

    python benchmarks/score.py --pred M_pred.h5ad --real M_real.h5ad --profiles vcc full -o score.json
    python benchmarks/score.py --size medium                       # makes its own pair first
    python benchmarks/score.py --controls 20000 --de-only          # the challenge's shape, DE alone, against pdex
    python benchmarks/score.py --growth --plot growth.png          # time and memory against perturbations, cells, controls
    python benchmarks/score.py --size medium --profiles vcc2026    # on counts, against cell-eval2
    python benchmarks/score.py --challenge                         # steval alone, a whole context of the challenge of 2026

`cell-eval` and, for vcc2026, `cell-eval2` are taken from PATH, or from --cell-eval and --cell-eval2 (which wants pdex beside it:
else its differential expression is scanpy's). Both sides are given the same files and the same number of threads.
Each command runs `--repeats` times; medians and the ratios of medians are printed. `cold` has no cached real side,
`cached` has it; numba's compiled code is warm for steval (it is compiled once per machine), as it would be from the second
run on; `--first` also measures the very first run. The default run, with baselines and checks, needs training cells: those
of --train, else cells of another type with the same perturbations, made of the real file. Seconds on the processors (user
and system) tell more than the clock on a machine that is busy with other things.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"small": (10, 100, 500), "medium": (50, 200, 2000)}
"""Perturbations, cells of each, controls."""
GROWTH = (
    (10, 100, 500),
    (20, 100, 500),
    (40, 100, 500),
    (10, 200, 500),
    (10, 400, 500),
    (10, 100, 2000),
    (10, 100, 8000),
)
TINY = (4, 20, 60, 200)
CHALLENGE = (300, 400, 18_000, 18_533)
COLUMNS = ("target_gene", "non-targeting")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="score-benchmark-") as name:
        work = Path(options.work or name)
        work.mkdir(parents=True, exist_ok=True)
        if options.growth:
            outcome = growth(work, options)
        elif options.de_only:
            outcome = de_only(*pair_of(work, options), options)
        elif options.challenge:
            outcome = challenge(work, options)
        elif options.profiles == ["vcc2026"]:
            outcome = on_counts(*pair_of(work, options), work, options)
        else:
            outcome = profiles(*pair_of(work, options), work, options)
    if options.output:
        Path(options.output).write_text(json.dumps(outcome, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the pair that is made where none is given")
    parser.add_argument("--controls", type=int, help="number of control cells of that pair")
    parser.add_argument("--genes", type=int, default=18080, help="number of genes of pairs that are made")
    parser.add_argument("--profiles", nargs="+", default=["vcc"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cell-eval", default=shutil.which("cell-eval"))
    parser.add_argument("--cell-eval2", default=shutil.which("cell-eval2"))
    parser.add_argument(
        "--scale", action="store_true", help="vcc2026: also both ends of its scale, which takes the peer long"
    )
    parser.add_argument(
        "--challenge", action="store_true", help="steval alone, on a pair of the size of a context of 2026"
    )
    parser.add_argument("--alone", action="store_true", help="vcc2026: steval alone")
    parser.add_argument(
        "--train", type=Path, help="training cells of the default run; made of the real ones if not given"
    )
    parser.add_argument("--first", action="store_true", help="also the very first run, kernels compiled on the way")
    parser.add_argument("--de-only", action="store_true", help="differential expression alone, against pdex")
    parser.add_argument("--sample", type=int, default=3, help="perturbations that pdex is timed on")
    parser.add_argument("--growth", action="store_true", help="steval alone, on pairs of growing size")
    parser.add_argument("--plot", type=Path, help="PNG or SVG of --growth")
    parser.add_argument("--work", type=Path, help="directory for files; a temporary one otherwise")
    parser.add_argument("-o", "--output", help="JSON with every figure")
    return parser.parse_args()


def profiles(pred: Path, real: Path, work: Path, options: argparse.Namespace) -> dict:
    """Whole commands, profile by profile."""
    outcome = {}
    train = options.train or apart(make_training, real, work / "train.h5ad")
    for profile in options.profiles:
        ours = steval_command(pred, real, work, profile, "--metrics-only")
        default = steval_command(pred, real, work, profile, "--train", train)
        theirs = [options.cell_eval, "run", "-ap", pred, "-ar", real, "--pert-col", COLUMNS[0], "--control-pert", COLUMNS[1],
                  "--profile", profile, "--num-threads", options.threads, "-o", work / "cell-eval"]  # fmt: skip
        rows = {}
        if options.first:
            rows["steval, first run on the machine"] = [
                measure(ours, {"NUMBA_CACHE_DIR": fresh(work / "numba")}, options)
            ]
        warm_up(work, profile, options)
        cached = [*ours, "--cache-dir", fresh(work / "cache")]
        measure(cached, {}, options)
        for _ in range(options.repeats):
            rows.setdefault("cell-eval", []).append(measure(theirs, {}, options))
            rows.setdefault("steval, cold", []).append(measure(ours, {}, options))
            rows.setdefault("steval, real side cached", []).append(measure(cached, {}, options))
            rows.setdefault("steval, with baselines and checks", []).append(measure(default, {}, options))
        outcome[profile] = {name: median(runs) for name, runs in rows.items()}
        show(f"profile {profile}", outcome[profile], "cell-eval")
    return outcome


def on_counts(pred: Path, real: Path, work: Path, options: argparse.Namespace) -> dict:
    """The profile vcc2026 against cell-eval2's preset of that name: the metrics, and both ends of the scale."""
    ours = steval_command(pred, real, work, "vcc2026", "--metrics-only", "--threads", options.threads)
    peer = [
        options.cell_eval2,
        "run",
        "--preset",
        "vcc2026",
        "--pert-col",
        COLUMNS[0],
        "--set",
        f"num_threads={options.threads}",
    ]
    theirs = [*peer, "-ap", pred, "-ar", real, "-o", work / "cell-eval2"]
    tiny = apart(make_pair, fresh(work / "tiny"), *TINY, True)
    measure(steval_command(*tiny, work, "vcc2026"), {}, options)
    cached = [*ours, "--cache-dir", fresh(work / "cache")]
    measure(cached, {}, options)
    rows: dict[str, list] = {} if options.alone else {"cell-eval2": []}
    for _ in range(options.repeats):
        if not options.alone:
            rows["cell-eval2"].append(measure(theirs, {}, options))
        rows.setdefault("steval, cold", []).append(measure(ours, {}, options))
        rows.setdefault("steval, real side cached", []).append(measure(cached, {}, options))
        whole = [*ours[: ours.index("--metrics-only")], "--threads", options.threads]
        rows.setdefault("steval, with scale, checks, report", []).append(measure(whole, {}, options))
    outcome = {"vcc2026": {name: median(runs) for name, runs in rows.items()}}
    show("profile vcc2026", outcome["vcc2026"], "steval, cold" if options.alone else "cell-eval2")
    if options.scale:
        baseline = [options.cell_eval2, "baseline", *peer[2:], "-ar", real, "-o", work / "cell-eval2"]
        ends = [measure(command, {}, options) for command in (baseline, [*theirs, "--anchor"])]
        alone = median([measure(theirs, {}, options)])
        scale = {
            "cell-eval2": {
                "seconds": sum(run["seconds"] for run in ends) - alone["seconds"],
                "cpu_seconds": sum(run["cpu_seconds"] for run in ends) - alone["cpu_seconds"],
                "megabytes": max(run["megabytes"] for run in ends),
            },
            "steval": measure([sys.executable, "-c", ENDS, real, options.threads, "-o", work / "ends"], {}, options),
        }
        outcome["scale"] = scale
        show("both ends of the scale (cell-eval2: baseline, and run --anchor less run)", scale, "cell-eval2")
    return outcome


def challenge(work: Path, options: argparse.Namespace) -> dict:
    """A context of the challenge of 2026, generated: 300 perturbations × 400 cells, 18,000 controls, 18,533 genes."""
    perts, cells, controls, genes = CHALLENGE
    pred, real = work / "challenge_pred.h5ad", work / "challenge_real.h5ad"
    if not real.exists():
        apart(make_challenge, pred, real, perts, cells, controls, genes)
    tiny = apart(make_pair, fresh(work / "tiny"), *TINY, True)
    measure(steval_command(*tiny, work, "vcc2026"), {}, options)
    command = steval_command(
        pred, real, work, "vcc2026", "--threads", options.threads, "--cache-dir", fresh(work / "cache")
    )
    rows = {"metrics, scale, checks, report": [measure(command, {}, options)]}
    rows["the same, real side cached"] = [measure(command, {}, options)]
    rows["metrics alone, real side cached"] = [measure([*command, "--metrics-only"], {}, options)]
    outcome = {name: median(runs) for name, runs in rows.items()}
    show(
        f"a context of the challenge: {perts} x {cells} + {controls} cells x {genes} genes",
        outcome,
        next(iter(outcome)),
    )
    return outcome


def make_challenge(pred: Path, real: Path, perts: int, cells: int, controls: int, genes: int) -> None:
    """Cells of about 12,000 counts each, a perturbation after the other; the prediction has half the effect and no controls."""
    from numba import njit

    from steval.data.cells.record import steval_record
    from steval.data.cells.writer import CellWriter
    from steval.data.columns import Columns

    draw = njit(cache=True)(draw_cells)
    rng = np.random.default_rng(0)
    weights = rng.lognormal(0, 1.5, genes)
    names = [f"GENE{i:05d}" for i in range(genes)]
    columns = Columns(cell_type=None, batch=None)
    record = steval_record(made_by="benchmark", scale="counts", target_sum=None, columns=columns)
    effects = [np.where(rng.random(genes) < 0.01, rng.normal(0, 0.7, genes), 0.0) for _ in range(perts)]
    for path, strength in ((pred, 0.5), (real, 1.0)):
        with CellWriter(path, names, record, compression="none") as writer:
            groups = [(names[place], strength * effect, cells) for place, effect in enumerate(effects)]
            for name, effect, number in groups if path == pred else [*groups, (COLUMNS[1], 0.0, controls)]:
                shares = np.cumsum(weights * np.exp(effect))
                for start in range(0, number, 500):
                    size = min(500, number - start)
                    depths = rng.lognormal(np.log(12_000), 0.3, size).astype(np.int64)
                    block = draw(shares / shares[-1], depths, rng)
                    writer.append(block, {COLUMNS[0]: np.full(size, name)})


def draw_cells(shares, depths, rng):  # type: ignore[no-untyped-def]
    """Counts `[n, G]` of cells of `depths` molecules, each of a gene by the cumulated `shares`."""
    buckets = 1 << 16
    first = np.searchsorted(shares, np.arange(buckets) / buckets)
    counts = np.zeros((len(depths), len(shares)), dtype=np.float32)
    for row in range(len(depths)):
        for _ in range(depths[row]):
            at = rng.random()
            gene = first[int(at * buckets)]
            while shares[gene] <= at:
                gene += 1
            counts[row, gene] += 1
    return counts


ENDS = """
import sys
from steval.data.columns import Columns
from steval.evaluator.cells.pair import Pair
from steval.evaluator.metrics.profiles import resolve
from steval.evaluator.reference.replicates import replicate_scale
with Pair.build(sys.argv[1], sys.argv[1], Columns(cell_type=None), takes="counts") as pair:
    replicate_scale(pair, resolve("vcc2026"), int(sys.argv[2]))
"""


def warm_up(work: Path, profile: str, options: argparse.Namespace) -> None:
    """Compile what is compiled once per machine, on a tiny pair."""
    pred, real = apart(make_pair, fresh(work / "tiny"), *TINY)
    train = apart(make_training, real, work / "tiny" / "train.h5ad")
    measure(steval_command(pred, real, work, profile, "--train", train), {}, options)


def steval_command(pred: Path, real: Path, work: Path, profile: str, *more: object) -> list:
    """`steval score` on a pair."""
    out = work / "steval-score"
    return [sys.executable, "-m", "steval", "score", pred, "--real", real, "--profile", profile, "-o", out, *more]


def measure(command: list, environment: dict, options: argparse.Namespace) -> dict:
    """Seconds on the clock and on the processors, and peak resident megabytes, of one process."""
    shutil.rmtree(options_out(command), ignore_errors=True)
    limits = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **limits, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[0]} failed:\n{error.decode()[-2000:]}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss / 1024}


def options_out(command: list) -> Path:
    return Path(command[command.index("-o") + 1])


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def median(runs: list[dict]) -> dict:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def show(title: str, rows: dict, reference: str) -> None:
    """A table with ratios to `reference`."""
    print(f"\n{title}")
    print(f"  {'':36} {'clock':>10} {'ratio':>8} {'processors':>12} {'ratio':>8} {'memory':>11} {'share':>7}")
    base = rows[reference]
    for name, row in rows.items():
        clock, cpu = base["seconds"] / row["seconds"], base["cpu_seconds"] / row["cpu_seconds"]
        print(
            f"  {name:36} {row['seconds']:8.1f} s {clock:6.1f} x {row['cpu_seconds']:10.1f} s {cpu:6.1f} x "
            f"{row['megabytes']:8.0f} MB {row['megabytes'] / base['megabytes']:7.0%}",
            flush=True,
        )


def de_only(pred: Path, real: Path, options: argparse.Namespace) -> dict:
    """Differential expression of one file: steval on all perturbations, pdex on a few, seconds for each perturbation."""
    import anndata as ad
    from pdex import pdex

    from steval.data.columns import Columns
    from steval.evaluator.cells.pair import Pair
    from steval.evaluator.measure.scan import Needs, scan

    adata = ad.read_h5ad(real)
    labels = adata.obs[COLUMNS[0]].astype(str)
    names = [name for name in labels.unique() if name != COLUMNS[1]]
    sample = adata[labels.isin([*names[: options.sample], COLUMNS[1]])].copy()
    arguments = {
        "groupby": COLUMNS[0],
        "reference": COLUMNS[1],
        "is_log1p": True,
        "epsilon": 0.0,
        "threads": options.threads,
    }
    warm = sample[:, :64].copy()
    pdex(warm, mode="ref", **arguments)
    start = time.perf_counter()
    theirs = pdex(sample, mode="ref", **arguments)
    pdex_seconds = (time.perf_counter() - start) / options.sample
    del adata
    with Pair.build(pred, real, Columns(cell_type=None, batch=None)) as pair:
        scan(pair.real, COLUMNS[1], pair.genes, Needs(de=True), options.threads)
        start = time.perf_counter()
        tables = scan(pair.real, COLUMNS[1], pair.genes, Needs(de=True), options.threads)
        ours_seconds = (time.perf_counter() - start) / len(names)
    frame = tables.de.frame()
    known = frame.filter(frame["target"].is_in(names[: options.sample])).sort("target", "feature")
    theirs = theirs.sort("target", "feature")
    difference = float(np.abs(known["p_value"].to_numpy() - theirs["p_value"].to_numpy()).max())
    outcome = {
        "controls": int((labels == COLUMNS[1]).sum()),
        "pdex seconds per perturbation": pdex_seconds,
        "steval seconds per perturbation, reading and sorting of controls included": ours_seconds,
        "ratio": pdex_seconds / ours_seconds,
        "largest difference of p": difference,
    }
    print(json.dumps(outcome, indent=1))
    return outcome


def growth(work: Path, options: argparse.Namespace) -> list[dict]:
    """Seconds and memory of `steval score --metrics-only` against perturbations, cells and controls."""
    rows = []
    profile = options.profiles[0]
    warm_up(work, profile, options)
    for perts, cells, controls in GROWTH:
        pred, real = apart(make_pair, work, perts, cells, controls, options.genes)
        command = steval_command(pred, real, work, profile, "--metrics-only")
        taken = median([measure(command, {}, options) for _ in range(options.repeats)])
        rows.append({"perturbations": perts, "cells": cells, "controls": controls, "genes": options.genes, **taken})
        print(rows[-1], flush=True)
        pred.unlink()
        real.unlink()
    if options.plot:
        plot_growth(rows, options.plot)
    return rows


def plot_growth(rows: list[dict], path: Path) -> None:
    """Three panels: one size grows, the other two stay at those of the first row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = rows[0]
    labels = {"perturbations": "perturbations", "cells": "cells of each perturbation", "controls": "control cells"}
    figure = Figure(figsize=(7.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 3, sharey="row", sharex="col")
    lines_of = {"seconds": ("on the clock", "#1f5fbf", "-"), "cpu_seconds": ("on the processors", "#d9822b", "--")}
    for column, (size, label) in enumerate(labels.items()):
        others = [name for name in labels if name != size]
        shown = sorted((r for r in rows if all(r[o] == base[o] for o in others)), key=lambda row: row[size])
        at = [row[size] for row in shown]
        for key, (name, colour, style) in lines_of.items():
            grid[0][column].plot(at, [r[key] for r in shown], style, marker="o", ms=4, color=colour, label=name)
        grid[1][column].plot(at, [row["megabytes"] for row in shown], "-", marker="o", ms=4, color="#2a8a57")
        fixed = {"perturbations": "{} perturbations", "cells": "{} cells each", "controls": "{:,} controls"}
        grid[0][column].set_title(", ".join(fixed[o].format(base[o]) for o in others), fontsize=8.5)
        grid[1][column].set_xlabel(label, fontsize=8.5)
        grid[1][column].set_xticks(at, [f"{value:,}" for value in at])
    for axes in grid.flat:
        axes.set_xlim(0, 1.08 * axes.dataLim.xmax)
        axes.grid(axis="y", color="#d9dee4", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for row, label in enumerate(("seconds", "peak memory, MB")):
        grid[row][0].set_ylabel(label, fontsize=8.5)
        grid[row][0].set_ylim(0, 1.12 * max(axes.dataLim.ymax for axes in grid[row]))
    grid[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=160)


def pair_of(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """The pair that was given, or one of `--size`."""
    if options.pred and options.real:
        return options.pred, options.real
    perts, cells, controls = SIZES[options.size]
    counts = options.profiles == ["vcc2026"]
    return apart(make_pair, work, perts, cells, options.controls or controls, options.genes, counts)


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """`function` in a process of its own: a child's peak memory counts what its parent held when it was started."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make_pair(work: Path, perts: int, cells: int, controls: int, genes: int, counts: bool = False) -> tuple[Path, Path]:
    """Synthetic cells at about 0.37 density, lognorm or counts, unsorted; the prediction is another draw with half the effect."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    weights = rng.lognormal(0, 1.5, genes)
    weights /= weights.sum()
    names = [f"GENE{i:05d}" for i in range(genes)]
    effects = [np.where(rng.random(genes) < 0.01, rng.normal(0, 0.7, genes), 0.0) for _ in range(perts)]
    order = rng.permutation(controls + perts * cells)
    labels = np.array([COLUMNS[1]] * controls + [names[i] for i in range(perts) for _ in range(cells)])
    paths = []
    for which, strength in (("pred", 0.5), ("real", 1.0)):
        blocks = [drawn_cells(rng, weights, controls, counts)]
        blocks += [drawn_cells(rng, weights * np.exp(strength * effect), cells, counts) for effect in effects]
        obs = pd.DataFrame({COLUMNS[0]: pd.Categorical(labels[order])}, index=[f"c{i}" for i in range(len(order))])
        matrix = sp.csr_matrix(sp.vstack(blocks, format="csr"))[order]
        paths.append(work / f"{perts}x{cells}+{controls}_{which}{'_counts' * counts}.h5ad")
        ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(paths[-1])
    return paths[0], paths[1]


def make_training(real: Path, path: Path) -> Path:
    """Cells like the real ones of another cell type: counts drawn again about what they express, normalised to the same total."""
    import anndata as ad
    import scipy.sparse as sp

    rng = np.random.default_rng(1)
    adata = ad.read_h5ad(real)
    matrix = sp.csr_matrix(adata.X, dtype=np.float32)
    totals = np.asarray(matrix.expm1().sum(axis=1)).ravel()
    matrix.data = rng.poisson(np.expm1(matrix.data)).astype(np.float32)
    drawn = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1)
    matrix.data *= np.repeat((totals / drawn).astype(np.float32), np.diff(matrix.indptr))
    np.log1p(matrix.data, out=matrix.data)
    matrix.eliminate_zeros()
    adata.X = matrix
    if "cell_type" in adata.obs:
        adata.obs["cell_type"] = "other"
    adata.write_h5ad(path)
    return path


def drawn_cells(rng: np.random.Generator, weights: np.ndarray, number: int, as_counts: bool):
    """Poisson cells with 20,000 counts, or log1p of their counts per 10,000; CSR float32."""
    import scipy.sparse as sp

    blocks = []
    for start in range(0, number, 500):
        size = min(500, number - start)
        depth = rng.lognormal(np.log(20000), 0.3, (size, 1)).astype(np.float32)
        expected = (
            (weights / weights.sum()).astype(np.float32)
            * depth
            * rng.standard_gamma(4.0, (size, len(weights)), dtype=np.float32)
            / 4
        )
        counts = rng.poisson(expected).astype(np.float32)
        blocks.append(
            sp.csr_matrix(counts if as_counts else np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True))))
        )
    return sp.vstack(blocks, format="csr")


if __name__ == "__main__":
    main()
