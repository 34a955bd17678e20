"""Rows per second of cell-load's training loader; run by `loader.py` with an interpreter that has cell-load."""

import argparse
import json
import resource
import time

from cell_load.data_modules import PerturbationDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toml")
    parser.add_argument("--batches", type=int)
    parser.add_argument("--sets", type=int)
    parser.add_argument("--set-size", type=int)
    options, _ = parser.parse_known_args()
    started = time.perf_counter()
    module = PerturbationDataModule(
        options.toml, batch_size=options.sets, num_workers=0, pert_col="target_gene", batch_col="batch",
        cell_type_key="cell_type", control_pert="non-targeting", embed_key=None, output_space="all",
        cell_sentence_len=options.set_size,
    )  # fmt: skip
    module.setup()
    batches = iter(module.train_dataloader())
    next(batches)
    opened = time.perf_counter()
    rows = sum(len(batch["pert_cell_emb"]) for batch, _ in zip(batches, range(options.batches), strict=False))
    took = time.perf_counter() - opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"rows/s": rows / took, "first batch s": opened - started, "peak GB": peak}))


main()
