"""Differential expression and energy distances of a screen: 300 perturbations × 400 cells and 20,000 controls × 18,533 genes.

Cells lie in memory; turning them gene-major and adding them up is the processors' part either way. The whole is also scanned
by the processors alone: U must be equal, p within 1e-9.
"""

import os
import time
from typing import Any

import numpy as np
from cells import CONTROL, draw_cells, label_names
from stage import Stage

from steval.data.columns import Columns
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.measure.scan import Needs, scan


def run(stage: Stage) -> None:
    """Note seconds on the device and on the processors, and the largest differences."""
    import anndata as ad
    import pandas as pd
    import torch

    from steval.evaluator.cells.pair import Pair
    from steval.workflows.device_measures import DeviceEngine

    perturbations, each, controls = stage.size(300, 6), stage.size(400, 40), stage.size(20_000, 100)
    labels = np.concatenate([np.zeros(controls, dtype=np.int64), np.repeat(np.arange(1, perturbations + 1), each)])
    started = time.perf_counter()
    matrix = draw_cells(labels, stage.size(18_533, 200), seed=3)
    obs = pd.DataFrame({"target_gene": pd.Categorical(label_names(labels)), "cell_type": "A"})
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(matrix, obs=obs)
    stage.note(
        cells=len(labels), genes=matrix.shape[1], values=int(matrix.nnz), drawing_s=time.perf_counter() - started
    )
    threads = len(os.sched_getaffinity(0))
    memory = 16 << 30
    with Pair.build(adata, adata, Columns(control=CONTROL)) as pair:

        def scanned(needs: Needs, engine: Engine) -> tuple[float, Any]:
            begun = time.perf_counter()
            tables = scan(pair.real, pair.control, pair.genes, needs, threads, engine)
            return time.perf_counter() - begun, tables

        device = DeviceEngine(torch.device(stage.device), memory)
        _warm(pair, device)
        seconds, found = scanned(Needs(de=True), device)
        stage.note(de_on_device_s=seconds, perturbations=perturbations)
        seconds, expected = scanned(Needs(de=True), HOST)
        stage.note(de_on_processors_s=seconds, threads=threads)
        stage.note(
            statistics_equal=bool(np.array_equal(found.de.statistic, expected.de.statistic)),
            largest_p_difference=float(np.abs(found.de.p_value - expected.de.p_value).max()),
            means_equal=bool(np.array_equal(found.de.target_mean, expected.de.target_mean)),
        )
        if stage.on_gpu:
            stage.note(peak_GB=torch.cuda.max_memory_allocated() / 1e9)
        seconds, found = scanned(Needs(de=False, energy=True), device)
        stage.note(energy_on_device_s=seconds)
        few = pair.real.regrouped(
            {name: pair.real.groups[name] for name in [*pair.perturbations[:3], pair.control]}, "few"
        )
        begun = time.perf_counter()
        expected = scan(few, pair.control, pair.genes, Needs(energy=True), threads)
        stage.note(energy_of_3_on_processors_s=time.perf_counter() - begun)
        stage.note(
            largest_energy_difference=float(np.abs(found.energy[:3] - expected.energy).max()), energy=found.energy[0]
        )


def _warm(pair: Any, engine: Engine) -> None:
    """Compile the host's kernels and wake the device on three perturbations."""
    few = pair.real.regrouped(
        {name: pair.real.groups[name][:200] for name in [*pair.perturbations[:3], pair.control]}, "warm"
    )
    for one in (engine, HOST):
        scan(few, pair.control, pair.genes, Needs(de=True), 2, one)
