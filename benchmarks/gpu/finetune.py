"""Steps of the trainer itself, feeding and logging included; a plain loop of the same arithmetic beside it.

Model FLOP utilisation: the FLOPs of the network's products, counted by torch on one forward and backward pass, over the time
of a step and the rate of a bf16 product measured by `rates`. Waiting: the share of the measured steps' time that the loop
spent waiting for a batch. The plain loop is the same network in float32 with Adam, dense batches from ordinary memory
and geomloss's formula by autograd, as arc-state's trainer has it; it is given its batches ready made.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from network import SET_SIZE, network_settings
from stage import Stage
from torch.utils.flop_counter import FlopCounterMode

from steval.data.training.sets import CellSetSampler
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.feeding import BatchMaker
from steval.trainer.fit.objective import Objective
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.progress.stopping import StopSignal
from steval.trainer.session import Session
from steval.trainer.start import Start

PROFILED = 4
SECONDS = 60
"""Most of one variant."""
COMPARISON = "comparison"


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    sets: int
    replayed: bool = False
    compiled: bool = False
    plain: bool = False


def variants(small: bool) -> dict[str, Variant]:
    """By name, the most telling first."""
    if small:
        return {"4 sets": Variant(4), "4 sets, plain loop": Variant(4, plain=True), COMPARISON: Variant(4)}
    return {
        "64 sets, replayed": Variant(64, replayed=True),
        "64 sets, compiled, replayed": Variant(64, replayed=True, compiled=True),
        "64 sets": Variant(64),
        "16 sets, compiled, replayed": Variant(16, replayed=True, compiled=True),
        "64 sets, plain loop": Variant(64, plain=True),
        COMPARISON: Variant(64),
        "64 sets, compiled": Variant(64, compiled=True),
    }


def run(stage: Stage) -> None:
    """Note steps, shares and kernels of each variant; and loss and gradients beside the processors'."""
    if stage.variant is not None:
        _run_variant(stage, stage.variant)
        return
    noted: dict[str, Any] = {}
    for name in variants(stage.small):
        found = stage.run_variant(name, SECONDS)
        if name == COMPARISON:
            stage.note(**found)
            continue
        noted[name] = found
        stage.note(runs=noted)


def _run_variant(stage: Stage, name: str) -> None:
    variant = variants(stage.small)[name]
    session = _session(stage, stage.made("cells.h5ad"), variant)
    flops = _flops_per_set(session, stage) * variant.sets
    if name == COMPARISON:
        _compare(stage, session)
    elif variant.plain:
        stage.note(**_plain(stage, session, flops))
    else:
        _measure(stage, session, flops)


def _config(stage: Stage, cells: Any, variant: Variant) -> FinetuneConfig:
    steps = stage.size(40, 12)
    values = {
        "data": {"files": [str(cells)], "split": {"by": "cells", "val": 0.02, "test": 0.02}, "memory_gb": 8.0},
        "network": network_settings(stage.small),
        "phases": [{"name": "all", "trains": "all", "steps": steps, "rates": {"encoders": 1e-4, "outputs": 1e-4}}],
        "sets": {"size": stage.size(SET_SIZE, 8), "per_batch": variant.sets},
        "checks": {"log_every": 1000, "validate_every": 1000, "validation_sets": 1},
        "compute": {
            "precision": "bf16-mixed",
            "compile": variant.compiled,
            "cuda_graph": variant.replayed,
            "devices": 1,
        },
        "loggers": ["csv"],
    }
    return FinetuneConfig.parse(values)


def _session(stage: Stage, cells: Any, variant: Variant) -> Session:
    """A run that writes nothing."""
    config = _config(stage, cells, variant)
    session = Session.open(Start(config, config), RunDirectory(stage.work / "run"), None, on_gpu=stage.on_gpu)
    session.cells.store.place = "sparse memory"
    return session


class _Watch:
    """Clock and profiler of a phase: warm-up, measured steps, profiled steps. `flops`: of one step."""

    def __init__(self, stage: Stage, session: Session, steps: int, flops: float):
        self._stage, self._session, self._flops = stage, session, flops
        self._first, self._last = steps // 3, steps - PROFILED - 1
        self._profiler: Any = None

    def __call__(self, progress: Any) -> None:
        if progress.step == self._first:
            self._stage.synchronise()
            self._started, self._waited = time.perf_counter(), self._session.feed.waited
        if progress.step == self._last:
            host = time.perf_counter() - self._started
            self._stage.synchronise()
            seconds = time.perf_counter() - self._started
            steps = self._last - self._first
            waited = self._session.feed.waited - self._waited
            measured = {
                "steps_per_second": steps / seconds, "ms_per_step": 1e3 * seconds / steps,
                "waiting_share": waited / seconds, "host_ms_per_step": 1e3 * (host - waited) / steps,
            }  # fmt: skip
            rate = self._stage.notes_of("rates").get("bf16_FLOPs")
            if rate:
                measured["MFU"] = self._flops * measured["steps_per_second"] / rate
            self._stage.note(**measured)
            if self._stage.on_gpu:
                self._stage.note(peak_GB=torch.cuda.max_memory_allocated() / 1e9)
                kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
                self._profiler = torch.profiler.profile(activities=kinds)
                self._profiler.__enter__()
        if progress.step == self._last + PROFILED and self._profiler is not None:
            self._stage.synchronise()
            self._profiler.__exit__(None, None, None)
            self._stage.note(**self._kernels())

    def _kernels(self) -> dict[str, Any]:
        """The ten kernels that take most of a step."""
        events = [
            (event.key, event.self_device_time_total / 1e3 / PROFILED, event.count / PROFILED)
            for event in self._profiler.key_averages()
            if event.self_device_time_total > 0
            and str(event.device_type).endswith("CUDA")
            and "#" not in event.key  # a span that torch names, with kernels in it
        ]
        events.sort(key=lambda event: -event[1])
        total = sum(event[1] for event in events)
        with (self._stage.out / "profile.txt").open("a") as file:
            file.write(f"\n== {self._stage.variant}\n")
            file.writelines(f"{ms:9.3f} ms {count:7.1f} x  {key[:150]}\n" for key, ms, count in events[:40])
        return {
            "kernels_ms_per_step": total,
            "kernels": [{"kernel": key[:120], "ms": ms, "share": ms / total} for key, ms, _ in events[:10]],
        }


def _measure(stage: Stage, session: Session, flops: float) -> None:
    watch = _Watch(stage, session, session.config.total_steps, flops)
    started = time.perf_counter()
    session.fit_phases(stage.device, StopSignal(), None, watch)
    stage.note(whole_s=time.perf_counter() - started)


def _flops_per_set(session: Session, stage: Stage) -> float:
    """FLOPs of a forward and backward pass of one set, on tensors without data."""
    with torch.device("meta"):
        network = StateTransition(session.model)
        cells = torch.empty(1, session.config.sets.size, session.model.input_dim)
        features = torch.empty(1, session.model.pert_dim)
    with FlopCounterMode(display=False) as counter:
        network(cells, features).output_BSG.sum().backward()
    return float(counter.get_total_flops())


def _plain(stage: Stage, session: Session, flops: float) -> dict[str, Any]:
    """Steps of the plain loop; the network's float32 products may not be TF32, as in Lightning's default."""
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    network = StateTransition(session.model).to(stage.device).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    sampler, device = session.samplers["train"], torch.device(stage.device)
    features = torch.from_numpy(session.cells.features)
    ready = [sampler.batch(0, number % sampler.num_batches()) for number in range(3)]
    taken = []
    for number in range(stage.size(9, 4)):
        cells = ready[number % len(ready)]
        stage.synchronise()
        started = time.perf_counter()
        control, target = (
            torch.from_numpy(np.asarray(part)).to(device) for part in (cells.control_BSG, cells.target_BSG)
        )
        predicted = network(control, features[torch.from_numpy(cells.pert_codes_B)].to(device)).output_BSG
        loss = _plain_energy(predicted, target).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        loss.item()
        taken.append(time.perf_counter() - started)
    seconds = statistics.median(taken[2:])
    rate = stage.notes_of("rates").get("fp32_FLOPs")
    found = {"steps_per_second": 1 / seconds, "ms_per_step": 1e3 * seconds}
    return found | ({"share_of_fp32_rate": flops / seconds / rate} if rate else {})


def _plain_energy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        squares = one.square().sum(-1)[:, :, None] + other.square().sum(-1)[:, None, :] - 2 * one @ other.mT
        return squares.clamp_min(1e-8).sqrt().mean((1, 2))

    return distances(left, right) - distances(left, left) / 2 - distances(right, right) / 2


def _compare(stage: Stage, session: Session) -> None:
    """Loss and gradients of one batch of two sets on the device and on the processors, in float32."""
    torch.set_float32_matmul_precision("highest")
    config = session.config
    sampler = CellSetSampler(session.cells, "train", set_size=config.sets.size, sets_per_batch=2, seed=0)
    maker = BatchMaker(sampler, torch.from_numpy(session.cells.features), packed=True)
    objective = Objective(config.loss, session.model)
    found: dict[str, list[torch.Tensor]] = {}
    for device in dict.fromkeys((stage.device, "cpu")):
        network = StateTransition(session.model).eval()
        network.load_state_dict(session.weights)
        network.to(device)
        batch = maker(0).to(torch.device(device))
        losses = objective(network(batch.control_BSG, batch.pert_BP, batch.batch_BS, batch.padding_BS), batch)
        losses[0].backward()
        gradients = [p.grad.cpu() for p in network.parameters() if p.grad is not None]
        found[device] = [losses[0].detach().cpu(), *gradients]
    here, there = found[stage.device], found["cpu"]
    stage.note(
        loss_on_device=here[0].item(), loss_on_processors=there[0].item(),
        largest_gradient_difference=max(float((a - b).norm() / b.norm()) for a, b in zip(here[1:], there[1:], strict=True)),
    )  # fmt: skip
