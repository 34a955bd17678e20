"""Rows per second of the training loader alone, beside cell-load's on the same file, in the same run.

    python benchmarks/loader.py DATA.h5ad [--peer-python PYTHON] [--batches 40] [--repeats 3] [--sets 4] [--set-size 64]
    python benchmarks/loader.py [DATA.h5ad] --packed [--batches 40] [--repeats 3] [--threads 1,2] [--workers 1,2] [--disk]

A row is a perturbed cell of a batch with the control cell that it starts from: two dense expression profiles. Both
loaders work in one process without prefetching, on the same set size, over batches of the first epoch. `--peer-python`
names an interpreter that has cell-load; runs take turns, and medians are printed with the spread.

`--packed`: batches as they are made for a GPU instead, 64 sets each, sparse, by so many threads (in memory that is used over and
over) or worker processes; `--disk` reads cells from the file, as data beyond `data.memory_gb` are. Processor seconds tell what
other numbers of processors can make. Without DATA, cells are drawn in the shape of a screen (18,080 genes, a tenth expressed).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("loader_peer.py")
PLACES = {"steval, memory": 16.0, "steval, disk": 0.0}


def main() -> None:
    options = _options()
    if options.packed:
        _packed(options)
        return
    if options.place:
        print(json.dumps(_measure(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for place in PLACES:
            arguments = [str(options.data), "--place", place, *_shape(options)]
            runs.setdefault(place, []).append(_run([sys.executable, __file__, *arguments]))
        if options.peer_python:
            with tempfile.TemporaryDirectory() as directory:
                toml = _split_file(options.data, Path(directory))
                runs.setdefault("cell-load", []).append(
                    _run([options.peer_python, str(PEER), str(toml), *_shape(options)])
                )
    _report(runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--workers", default="")
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--peer-python")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sets", type=int)
    parser.add_argument("--set-size", type=int, default=64)
    parser.add_argument("--target-sum", type=float)
    parser.add_argument("--place", choices=list(PLACES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sets = options.sets or (64 if options.packed else 4)
    if options.data is None and not options.packed:
        parser.error("DATA.h5ad is needed without --packed")
    return options


def _shape(options: argparse.Namespace) -> list[str]:
    values = {
        "batches": options.batches,
        "sets": options.sets,
        "set-size": options.set_size,
        "target-sum": options.target_sum,
    }
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def _measure(options: argparse.Namespace) -> dict[str, float]:
    from steval.data.splits.assignment import CellSplit
    from steval.data.training.cells import CellsSettings, TrainingCells
    from steval.data.training.sets import CellSetSampler

    started = time.perf_counter()
    settings = CellsSettings(files=(str(options.data),), memory_gb=PLACES[options.place], target_sum=options.target_sum)
    cells = TrainingCells.open(settings, CellSplit())
    sampler = CellSetSampler(cells, "train", set_size=options.set_size, sets_per_batch=options.sets, seed=0)
    sampler.batch(0, 0)
    opened = time.perf_counter()
    rows = 0
    for number in range(options.batches):
        epoch, index = divmod(number, sampler.num_batches())
        rows += sampler.batch(epoch, index).target_rows_BS.size
    took = time.perf_counter() - opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"rows/s": rows / took, "first batch s": opened - started, "peak GB": peak}


def _packed(options: argparse.Namespace) -> None:
    """Batches per second of threads and of worker processes; of threads, processor time of one."""
    import torch

    from steval.data.splits.assignment import CellSplit
    from steval.data.training.cells import CellsSettings, TrainingCells
    from steval.data.training.sets import CellSetSampler
    from steval.trainer.fit.feeding import BatchMaker

    with tempfile.TemporaryDirectory() as directory:
        data = options.data or _drawn_cells(Path(directory))
        memory = 0.0 if options.disk else 16.0
        settings = CellsSettings(files=(str(data),), memory_gb=memory, target_sum=options.target_sum)
        cells = TrainingCells.open(settings, CellSplit(val=0.02, test=0.02))
        cells.store.place = "disk" if options.disk else "sparse memory"
        sampler = CellSetSampler(cells, "train", set_size=options.set_size, sets_per_batch=options.sets, seed=0)
        maker = BatchMaker(sampler, torch.from_numpy(cells.features), packed=True)
        size = sum(tensor.nbytes for tensor in _tensors(maker(0)))
        print(f"{options.sets} sets of {options.set_size} cells from {cells.store.place}: {size / 1e6:.0f} MB a batch")
        for count in _numbers(options.threads):
            runs = [_timed(maker, options.batches, count) for _ in range(options.repeats)]
            rate, processor = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{count} threads: {rate:6.1f} batches/s, {1e3 * processor:6.1f} ms of processor time a batch")
        for count in _numbers(options.workers):
            rate = statistics.median(_timed_workers(maker, options.batches, count) for _ in range(options.repeats))
            print(f"{count} worker processes: {rate:6.1f} batches/s")


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


def _timed(maker: Any, batches: int, threads: int) -> tuple[float, float]:
    """Batches per second, and processor seconds of one, after as many as there are slots."""
    from steval.trainer.fit.feeding import AHEAD, ThreadFeed
    from steval.trainer.fit.staging import Ring

    settled = 2 * (AHEAD + threads) + 2
    feed = ThreadFeed(Ring(maker, AHEAD + threads, pin=False), range(settled + batches), threads)
    for number, made in enumerate(feed):
        made.slot.release(lambda: None)
        if number == settled - 1:
            started, used = time.perf_counter(), time.process_time()
    return batches / (time.perf_counter() - started), (time.process_time() - used) / batches


def _timed_workers(maker: Any, batches: int, workers: int) -> float:
    """Batches per second, after those that the processes had ready when they began."""
    from steval.trainer.fit.feeding import WorkerFeed

    settled = 4 * workers
    for number, _ in enumerate(WorkerFeed(maker, range(settled + batches), workers)):
        if number == settled - 1:
            started = time.perf_counter()
    return batches / (time.perf_counter() - started)


def _tensors(batch: Any) -> list[Any]:
    found: list[Any] = []
    batch.each(lambda tensor: found.append(tensor) or tensor)
    return found


def _drawn_cells(directory: Path) -> Path:
    """50 perturbations and controls, 200 cells each, as the GPU's benchmark has them."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).with_name("gpu")))
    from cells import TARGET_SUM, draw_cells, label_names

    from steval.data.cells.record import steval_record
    from steval.data.cells.writer import CellWriter
    from steval.data.columns import Columns

    labels = np.repeat(np.arange(51), 200)
    matrix = draw_cells(labels, 18_080, seed=1)
    path = directory / "cells.h5ad"
    record = steval_record(
        made_by="benchmarks/loader", scale="lognorm", target_sum=TARGET_SUM, columns=Columns(), details={}
    )
    genes = [f"GENE{number}" for number in range(matrix.shape[1])]
    with CellWriter(path, genes, record, compression="none") as writer:
        writer.append(
            matrix, {"target_gene": label_names(labels), "cell_type": ["A"] * len(labels), "batch": ["b"] * len(labels)}
        )
    return path


def _split_file(data: Path, directory: Path) -> Path:
    """The whole file trains, but for one perturbation that validates."""
    import h5py

    with h5py.File(data, "r") as handle:
        names = handle["obs/target_gene/categories"].asstr()[:]
        context = handle["obs/cell_type/categories"].asstr()[0]
    held = next(name for name in names if name != "non-targeting")
    path = directory / "split.toml"
    path.write_text(
        f'[datasets]\nm = "{data.resolve()}"\n[training]\nm = "train"\n[zeroshot]\n[fewshot."m.{context}"]\nval = ["{held}"]\n'
    )
    return path


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _report(runs: dict[str, list[dict[str, float]]]) -> None:
    base = statistics.median(run["rows/s"] for run in runs["cell-load"]) if "cell-load" in runs else None
    for name, results in runs.items():
        rates = [result["rows/s"] for result in results]
        median = statistics.median(rates)
        ratio = f"  {median / base:6.1f} × cell-load" if base and name != "cell-load" else ""
        rest = "  ".join(
            f"{key} {statistics.median(run[key] for run in results):.1f}" for key in results[0] if key != "rows/s"
        )
        print(f"{name:15} {median:9,.0f} rows/s ({min(rates):,.0f} to {max(rates):,.0f})  {rest}{ratio}")


if __name__ == "__main__":
    main()
