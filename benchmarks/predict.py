"""`steval predict` beside arc-state's `state tx infer`: whole processes, same weights, same cell numbers, same run.

    python benchmarks/predict.py DATA.h5ad RUN_DIR [--peer-bin DIR] [--checkpoint C.safetensors] [--repeats 3]
        [--dtypes float32,bf16] [--decodings network,carried] [--work DIR] [--tenfold]
        [--sizes tahoe_best,state_lg] [--json OUT.json]

DATA.h5ad is lognorm with 12,000 cells (of which N perturbed); RUN_DIR is an arc-state run directory. arc-state predicts all
12,000 cells from those of the file; steval predicts 12,000 cells of the perturbed labels from the same controls, both writing an
h5ad. Programs take turns; wall time, processor time and peak resident memory are those of the whole process, loading included.
Then, in one process: the share of the measured matrix-product rate that prediction reaches, and, with `--peer-bin`, the
largest difference from arc-state's own forward pass on the same sets. `--tenfold` also predicts ten times the cells.
`--sizes` repeats the comparison with networks of other sizes on the same data (random weights, made from RUN_DIR by
predict_peer.py, so `--peer-bin` is needed); NAME:KEY=VALUE:KEY=VALUE is a size of one's own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PEER_SCRIPT = Path(__file__).with_name("predict_peer.py")
PARITY_CELLS = 1024
RATE_CELLS = 12_800
LLAMA = "num_attention_heads=12:num_key_value_heads=12"
SIZES = {
    "tahoe_best": f"cell_set_len=512:max_position_embeddings=512:hidden_dim=1440:hidden_size=1440:intermediate_size=4416:"
    f"num_hidden_layers=4:head_dim=120:{LLAMA}:use_basal_projection=none",
    "state_lg": f"cell_set_len=512:max_position_embeddings=512:hidden_dim=1488:hidden_size=1488:intermediate_size=5952:"
    f"num_hidden_layers=6:head_dim=124:{LLAMA}",
}
"""Settings that arc-state 0.11.1 writes into config.yaml for `model=NAME`, where they differ from `state_sm`'s."""


def main() -> None:
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.inside:
        print(json.dumps(_inside(options)))
        return
    results = _measure(options)
    results["sizes"] = {}
    for size in filter(None, options.sizes.split(",")):
        name, _, settings = size.partition(":")
        results["sizes"][name] = _measure(_resized(options, name, settings or SIZES[name]))
    _report("the given network", results)
    for name, of_size in results["sizes"].items():
        _report(name, of_size)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """All programs in turns on one network, and what needs the numbers themselves."""
    checkpoint = options.checkpoint or _convert(options)
    request = _write_request(options, "request.csv", 1)
    programs = {
        f"steval {dtype}" + ("" if decoding == "network" else f" {decoding}"): _steval(
            options, checkpoint, request, "p.h5ad", dtype, decoding
        )
        for dtype in options.dtypes.split(",")
        for decoding in options.decodings.split(",")
    }
    if options.peer_bin:
        programs = {"arc-state": _arc(options), **programs}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        for name, command in programs.items():
            runs[name].append(_timed(command, options.work / f"{name.replace(' ', '-')}.log"))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    results: dict[str, Any] = {"runs": runs, "summary": _summary(runs)}
    if options.tenfold:
        tenfold = _write_request(options, "tenfold.csv", 10)
        command = _steval(options, checkpoint, tenfold, "tenfold.h5ad", "float32")
        results["tenfold"] = _timed(command, options.work / "tenfold.log")
        (options.work / "tenfold.h5ad").unlink()
    results["inside"] = _run_inside(options, checkpoint)
    return results


def _resized(options: argparse.Namespace, name: str, settings: str) -> argparse.Namespace:
    """The options for a network of another size, in a directory of its own."""
    work = options.work / name
    run_dir = work / "run"
    work.mkdir(parents=True, exist_ok=True)
    command = [str(options.peer_bin / "python"), str(PEER_SCRIPT), "resize", str(options.run_dir), str(run_dir)]
    subprocess.run([*command, *settings.split(":")], check=True, stdout=subprocess.DEVNULL)
    changes = {"work": work, "run_dir": run_dir, "checkpoint": None, "tenfold": False}
    return argparse.Namespace(**{**vars(options), **changes})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--peer-bin", type=Path, help="directory with arc-state's `state` and its `python`")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bf16")
    parser.add_argument("--decodings", default="network", help="of network, carried")
    parser.add_argument("--work", type=Path, default=Path("predict-benchmark"))
    parser.add_argument("--tenfold", action="store_true")
    parser.add_argument(
        "--sizes", default="", help=f"of {', '.join(SIZES)}, or NAME:KEY=VALUE:...; several with commas"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pert-col", default="target_gene")
    parser.add_argument("--control", default="non-targeting")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [size for size in filter(None, options.sizes.split(",")) if ":" not in size and size not in SIZES]
    if unknown or (options.sizes and not options.peer_bin):
        parser.error(f"no such size: {', '.join(unknown)}" if unknown else "--sizes needs --peer-bin")
    return options


def _convert(options: argparse.Namespace) -> Path:
    out = options.work / "converted.safetensors"
    command = [sys.executable, "-m", "steval", "convert", str(options.run_dir), "-o", str(out), "--target-sum", "10000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def _write_request(options: argparse.Namespace, name: str, times: int) -> Path:
    """As many cells as the data has, divided evenly over its perturbations."""
    from steval.data.cells.cellfile import CellFile

    with CellFile.open(options.data) as cells:
        labels = sorted(set(cells.obs[options.pert_col].astype(str)) - {options.control})
        each = times * cells.num_cells // len(labels)
    path = options.work / name
    path.write_text("perturbation,num_cells\n" + "".join(f"{label},{each}\n" for label in labels))
    return path


def _steval(
    options: argparse.Namespace, checkpoint: Path, request: Path, out: str, dtype: str, decoding: str = "network"
) -> list[str]:
    command = [sys.executable, "-m", "steval", "predict", str(checkpoint), "-o", str(options.work / out)]
    command += ["--request", str(request), "--controls", str(options.data), "--no-include-controls", "--dtype", dtype]
    return [*command, "--decoding", decoding]


def _arc(options: argparse.Namespace) -> list[str]:
    command = [str(options.peer_bin / "state"), "tx", "infer", "--adata", str(options.data), "--model-dir"]
    return [*command, str(options.run_dir), "--pert-col", options.pert_col, "--output", str(options.work / "arc.h5ad")]


def _timed(command: list[str], log: Path) -> dict[str, float]:
    """Wall and processor seconds and peak resident GB of a process with its children."""
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    started = time.perf_counter()
    with log.open("w") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=handle, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[0]} failed; see {log}")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gb": round(usage.ru_maxrss / 2**20, 3),
    }


def _summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    summary = {
        name: {key: statistics.median(run[key] for run in of_one) for key in of_one[0]} for name, of_one in runs.items()
    }
    peer = runs.get("arc-state")
    if peer is None:
        return summary
    for name, of_one in runs.items():
        pairs = list(zip(peer, of_one, strict=True))
        for key in ("wall_s", "cpu_s", "peak_gb"):
            summary[name][f"arc_over_this_{key}"] = statistics.median(arc[key] / ours[key] for arc, ours in pairs)
    return summary


def _run_inside(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(options.data), str(options.run_dir), "--work", str(options.work)]
    command += ["--checkpoint", str(checkpoint), "--dtypes", options.dtypes, "--inside"]
    command += ["--peer-bin", str(options.peer_bin)] if options.peer_bin else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _inside(options: argparse.Namespace) -> dict[str, Any]:
    """Rates and differences that need the numbers themselves."""
    from steval.checkpoints.store import load_checkpoint
    from steval.predictor.controls import file_controls
    from steval.predictor.engine import Predictor
    from steval.predictor.requests import request_names

    checkpoint = load_checkpoint(options.checkpoint)
    results: dict[str, Any] = {}
    with file_controls(options.data, checkpoint.manifest) as pool:
        names = [name for name in checkpoint.manifest.perturbation_names if name != options.control]
        size = checkpoint.manifest.model.cell_set_size
        request = request_names(names[: max(2, PARITY_CELLS // size)], size)
        exact = None
        for dtype in options.dtypes.split(","):
            predictor = Predictor(checkpoint, dtype=dtype)
            encoded = predictor.encode(pool)
            sets = list(predictor.predict(request, encoded))
            if exact is None and options.peer_bin and dtype == "float32":
                results["arc forward"] = _compare(options, checkpoint, pool, sets)
            exact = sets if exact is None else exact
            results[dtype] = {**_rates(predictor, encoded, names, size), **_difference(exact, sets)}
    return results


def _difference(exact: list[Any], sets: list[Any]) -> dict[str, float]:
    import numpy as np

    largest = max(float(np.abs(one.cells - other.cells).max()) for one, other in zip(exact, sets, strict=True))
    return {"largest_difference": largest, "largest_output": max(float(one.cells.max()) for one in exact)}


def _rates(predictor: Any, encoded: Any, names: list[str], size: int) -> dict[str, float]:
    """Floating-point rate of prediction from encoded controls, and of one matrix product of its largest layer's shape."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from steval.predictor.engine import DTYPES
    from steval.predictor.requests import request_names

    plan = predictor.plan(request_names(names[: max(1, RATE_CELLS // (4 * size))], 4 * size), encoded.pool)
    planned = list(plan.sets())
    num_cells = sum(one.num_cells for one in planned)
    with FlopCounterMode(display=False) as counter:
        first = next(predictor.predict_blocks(planned, encoded))
    flops_per_cell = counter.get_total_flops() / len(first.cells)
    rows, inner, outer = len(first.cells), max(8, predictor.num_outputs // 8), predictor.num_outputs
    left = torch.randn(rows, inner).to(DTYPES[predictor.dtype])
    right = torch.randn(outer, inner).to(DTYPES[predictor.dtype])
    product, whole = [], []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.linear(left, right)
        product.append((time.perf_counter() - started) / 4)
        started = time.perf_counter()
        for _ in predictor.predict_blocks(planned, encoded):
            pass
        whole.append(time.perf_counter() - started)
    product_rate = 2 * rows * inner * outer / statistics.median(product)
    rate = flops_per_cell * num_cells / statistics.median(whole)
    return {
        "cells_per_s": num_cells / statistics.median(whole),
        "mflop_per_cell": flops_per_cell / 1e6,
        "gflops": rate / 1e9,
        "product_gflops": product_rate / 1e9,
        "share_of_product_rate": rate / product_rate,
    }


def _compare(options: argparse.Namespace, checkpoint: Any, pool: Any, sets: list[Any]) -> dict[str, float]:
    """Largest difference from arc-state's forward pass on the same sets, relative to the largest output."""
    import numpy as np

    controls = np.stack([pool.inputs(one.control_indices).toarray() for one in sets])
    features = checkpoint.feature_rows([one.perturbation for one in sets]).numpy()
    np.savez(options.work / "sets.npz", controls=controls, features=features)
    out = options.work / "arc.npy"
    python = str(options.peer_bin / "python")
    command = [python, str(PEER_SCRIPT), "forward", str(options.run_dir), str(options.work / "sets.npz"), str(out)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    theirs = np.load(out)
    ours = np.concatenate([one.cells for one in sets])
    return {
        "cells": len(ours),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "relative_to_largest": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }


def _report(title: str, results: dict[str, Any]) -> None:
    print(f"== {title}")
    print(f"{'program':18} {'wall s':>8} {'cpu s':>8} {'peak GB':>8} {'× wall':>8} {'× cpu':>8} {'÷ memory':>9}")
    for name, row in results["summary"].items():
        ratios = [row.get(f"arc_over_this_{key}", float("nan")) for key in ("wall_s", "cpu_s", "peak_gb")]
        print(
            f"{name:18} {row['wall_s']:8.1f} {row['cpu_s']:8.1f} {row['peak_gb']:8.2f} "
            f"{ratios[0]:8.2f} {ratios[1]:8.2f} {ratios[2]:9.2f}"
        )
    if "tenfold" in results:
        ratio = results["tenfold"]["peak_gb"] / results["summary"]["steval float32"]["peak_gb"]
        print(f"ten times the cells: {results['tenfold']}, {ratio:.2f} × the memory")
    for name, row in results["inside"].items():
        print(name, {key: round(value, 6) for key, value in row.items()})


if __name__ == "__main__":
    main()
