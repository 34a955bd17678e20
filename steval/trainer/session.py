"""A run while it goes: everything opened and checked, then fitted phase by phase; all writing goes through its keeper."""

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steval.checkpoints.location import shown
from steval.checkpoints.manifest import TrainingRecord
from steval.checkpoints.store import load_checkpoint
from steval.data.reference import Part
from steval.data.training.cells import TrainingCells
from steval.data.training.sets import CellSetSampler
from steval.errors import ConfigError
from steval.machine import package_versions
from steval.model.config import ModelConfig
from steval.model.lora import LoraPair, merged, split_pairs
from steval.model.network import StateTransition
from steval.trainer.adapting import BaseTensors, keep_adapter, put_on
from steval.trainer.config import FinetuneConfig
from steval.trainer.estimates import require_fitting
from steval.trainer.fit.devices import build_trainer, fit, is_first_process, make_ready, training_device
from steval.trainer.fit.feeding import BatchMaker, Feed, open_feed
from steval.trainer.fit.objective import Objective, idle_parameters, require_terms
from steval.trainer.fit.optimiser import freeze, parameter_sets
from steval.trainer.fit.phase import PhaseFit, Stage
from steval.trainer.fit.replay import open_recorder
from steval.trainer.fit.timing import time_of_batch
from steval.trainer.fit.validation import Validator
from steval.trainer.heads import attach_heads, auxiliary_of, initial_heads, with_own_heads
from steval.trainer.inputs import RunInputs
from steval.trainer.new_layers import start_from_data
from steval.trainer.preflight import (
    estimate_notice,
    guard_fresh_weights,
    guard_representation,
    phase_notice,
    preflight_notice,
)
from steval.trainer.progress.keeper import Keeper, QuickEval, Warmup
from steval.trainer.progress.notices import Notice, OnStep, PhaseBar, Tell
from steval.trainer.progress.rundir import PACKAGES, RunDirectory
from steval.trainer.progress.sinks import cut_back, open_sinks
from steval.trainer.progress.state import Progress, TrainerState, load_state
from steval.trainer.progress.stopping import StopSignal
from steval.trainer.settings.network import describe_network, plan_network
from steval.trainer.sources import Base, build_manifest, default_controls, initial_weights, open_cells
from steval.trainer.start import Start

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """Everything opened and checked; nothing written before `start`."""

    config: FinetuneConfig
    """What the run computes, its network described."""
    reading: FinetuneConfig
    """The same with files and workers as this attempt reads its data."""
    inputs: RunInputs | None
    """The files of a resumed run; of a new one they are recorded as it starts."""
    directory: RunDirectory
    base: Base | None
    cells: TrainingCells
    samplers: dict[str, CellSetSampler]
    """`train` (for one process) and `val`."""
    model: ModelConfig
    weights: dict[str, Tensor]
    progress: Progress
    state: TrainerState | None
    """What to take up; None at the start."""
    tell: Tell
    record: dict[str, Any]
    base_tensors: BaseTensors = field(default_factory=BaseTensors)
    """What the adapters of a `lora` phase are bound to."""
    keeper: Keeper | None = None
    waited: float = 0.0
    """Seconds that steps waited for their batch, in this process and attempt; of phases that have ended."""
    feed: Feed | None = None
    """Where the running phase gets its batches from."""

    @classmethod
    def open(cls, start: Start, directory: RunDirectory, report: Tell | None, *, on_gpu: bool) -> "Session":
        """Open data and weights, plan the network, tell the preflight table."""
        tell = _telling(report)
        base, inputs = start.read_base(), start.inputs()
        reading = start.reading
        if inputs is not None:
            reading = reading.model_copy(update={"data": inputs.settings(reading.data)})
        cells = open_cells(reading.data, base, needs_batch=_uses_batches(start.config, base))
        if inputs is not None:
            cells.file_references = inputs.data  # their bytes have just been read and compared
        config = start.config
        model = plan_network(config.network, cells, config.sets.size, base.source.config if base else None)
        require_terms(config.loss, model)
        require_fitting(config, model, on_gpu=on_gpu)
        found = guard_representation(cells, model, base, allow_mismatch=start.allow_mismatch)
        found += guard_fresh_weights(config, base, from_nothing=start.from_nothing)
        config = config.model_copy(update={"network": describe_network(model, config.network)})
        samplers = {part: _sampler(cells, config, part) for part in ("train", "val")}
        preflight = preflight_notice(config, cells, model, samplers, base, found)
        tell(preflight)
        record: dict[str, Any] = {
            "config_digest": config.digest(),
            "init_from": shown(base.path) if base else None,
            "base": base.source.name if base else None,
            "allow_mismatch": start.allow_mismatch,
            "model": model.as_dict(),
            "preflight": {str(label): str(text) for label, text in preflight.rows},
            "warnings": list(preflight.warnings),
            "versions": package_versions(PACKAGES),
        }
        light = base.without_weights() if base else None
        opened = cls(
            config, reading, inputs, directory, light, cells, samplers, model, {}, Progress(), None, tell, record,
            base_tensors=BaseTensors.of(base, config),
        )  # fmt: skip
        if start.record and directory.state_path.exists():
            state = load_state(directory.state_path)
            _require_same_run(state, config, directory)
            return replace(opened, weights=state["weights"], progress=Progress.restore(state), state=state)
        weights, transplant = initial_weights(model, cells, base, config.seed)
        if transplant is not None:
            first, *rest = transplant.lines()
            tell(Notice(f"Transplant: {first}", ("tensor",), tuple((line,) for line in rest)))
            record["transplant"] = transplant.as_dict()
        tensors, starts = start_from_data(config.network, model, cells, weights, transplant)
        weights |= tensors | initial_heads(config, model, cells)
        tell(Notice("New layers", ("layer", "starts"), starts))
        record["new_layers"] = dict(starts)
        return replace(opened, weights=weights)

    def start(self, warmup: Warmup | None) -> None:
        """Write the directory's first files, or cut what is there back to the state that is taken up; the first process alone."""
        progress, directory = self.progress, self.directory
        inputs = self.inputs or RunInputs.of(self.cells, self.reading.data)
        directory.create()
        directory.adapter_path.unlink(missing_ok=True)
        directory.write_config(self.config.to_yaml())
        fresh = {**self.record, "phases": {}} if self.state is None else {}
        directory.update_record(
            {**fresh, **inputs.as_record(), "init_from": self.record["init_from"], "status": "running"}
        )
        directory.cut_back(progress.step, progress.best, progress.best_digest)
        if self.state is None:
            directory.metrics_path.unlink(missing_ok=True)
        cut_back(
            directory.metrics_path, [phase.name for phase in self.config.phases], progress.phase, progress.phase_step
        )
        self.keeper = Keeper(
            directory,
            build_manifest(
                self.cells, self.model, self.reading.data, inputs.side_files.get("evaluation_file"), self.base
            ),
            torch.from_numpy(self.cells.features),
            default_controls(self.cells, self.config.seed),
            TrainingRecord(
                config_digest=self.config.digest(),
                config=self.config.as_dict(),
                seed=self.config.seed,
                versions=self.record["versions"],
                initial_weights=self.base.source.name if self.base else None,
            ),
            open_sinks(
                self.config.loggers,
                directory,
                project=self.config.wandb_project,
                settings=self.config.as_dict(),
                # the row of the saved step itself was written before the state was
                purge_step=progress.step + 1 if self.state else None,
            ),
            warmup=warmup,
        )

    def fit_phases(self, device: str, stop: StopSignal, quick_eval: QuickEval | None, on_step: OnStep | None) -> bool:
        """Run the phases that remain; whether all were finished."""
        with torch.device("meta"):  # neither drawn at random first nor held twice
            network = StateTransition(self.model)
            attach_heads(network, self.config, self.cells)
        first, pairs = self._take_weights(network)
        make_ready(network, self.config.compute, device)
        for number in range(first, len(self.config.phases)):
            if self.state is None:
                self._enter_phase(number, network)
            network = self._fit_phase(number, network, device, stop, quick_eval, on_step, pairs)
            gc.collect()  # Lightning's trainer and what it trains hold each other, and the moments of all weights
            self.state, pairs = None, {}
            if self.progress.phase_step < self.config.phases[number].steps:
                return False
            if number + 1 < len(self.config.phases) and stop.agreed():  # at its last step, after it was asked
                return False
        return True

    def _take_weights(self, network: StateTransition) -> tuple[int, dict[str, LoraPair]]:
        """Give the network its weights; the number of the phase to go on with, and the adapters of one that was interrupted."""
        first = self.progress.phase
        weights, pairs = split_pairs(self.weights)
        if self.state is not None and self.progress.phase_step == self.config.phases[first].steps:
            lora = self.config.phases[first].lora
            weights, pairs = (weights if lora is None else merged(weights, pairs, lora.scale)), {}
            first, self.state = first + 1, None
        network.load_state_dict(weights, assign=True)
        self.weights = {}
        return first, pairs

    def rehearse(self, device: str) -> None:
        """Tell each phase as it will train, and what the run will take; a few steps are computed and thrown away."""
        network = StateTransition(self.model)
        attach_heads(network, self.config, self.cells)
        network.load_state_dict(self.weights)
        make_ready(network, self.config.compute, device)
        config, count = self.config, len(self.config.phases)
        for number, phase in enumerate(config.phases):
            attached = put_on(network, phase, config.seed, number, {})
            freeze(network, phase, idle_parameters(config.loss, self.model, auxiliary_of(network, config, phase)))
            sets = parameter_sets(network, phase, config.optimiser.weight_decay)
            self.tell(phase_notice(phase, number, count, network, sets))
            if attached is not None and number + 1 < count:
                attached.remove()
        objective = Objective(config.loss, self.model, None, auxiliary_of(network, config, config.phases[-1]))
        maker = BatchMaker(self.samplers["train"], torch.from_numpy(self.cells.features))
        where = training_device(config.compute, device)
        seconds = time_of_batch(network, objective, maker, where, config.compute) * config.sets.accumulation
        self.tell(estimate_notice(config, self.model, seconds, on_gpu=where.type == "cuda"))

    def finish(self) -> None:
        """Close metrics and write how it ended."""
        if self.keeper is None:
            return
        self.keeper.close()
        done = self.progress.step == self.config.total_steps
        self.directory.update_record(
            {
                "status": "finished" if done else "stopped",
                "step": self.progress.step,
                "best": self.progress.best,
                "phase_records": self.progress.phases,
                "training_seconds": round(self.progress.seconds, 3),
                "waiting_seconds": round(self.waited, 3),
                "writing_seconds": round(self.keeper.seconds, 3),
            }
        )

    def keep_adapter(self) -> None:
        """Write the best weights as adapters beside the base, where a `lora` phase found them; the first process alone."""
        keep_adapter(self.directory, self.progress, self.config, self.base_tensors)

    def _enter_phase(self, number: int, network: StateTransition) -> None:
        """Weights that the phase starts from: the best so far, or those there are."""
        progress, directory = self.progress, self.directory
        if number and self.config.phases[number].start == "best" and progress.best and self.keeper is not None:
            directory.require_best(progress.best, progress.best_digest)
            network.load_state_dict(with_own_heads(load_checkpoint(directory.best_path).weights, network))
        progress.begin_phase(number, self.config.phases[number].name)

    def _fit_phase(
        self, number: int, network: StateTransition, device: str, stop: StopSignal, quick_eval: QuickEval | None,
        on_step: OnStep | None, pairs: Mapping[str, LoraPair],
    ) -> StateTransition:  # fmt: skip
        """Fit a phase; the network on the CPU after it."""
        config, phase = self.config, self.config.phases[number]
        attached = put_on(network, phase, config.seed, number, pairs)
        auxiliary = auxiliary_of(network, config, phase)
        freeze(network, phase, idle_parameters(config.loss, self.model, auxiliary))
        sets = parameter_sets(network, phase, config.optimiser.weight_decay)
        notice = phase_notice(phase, number, len(config.phases), network, sets)
        self.tell(notice)
        if self.keeper is not None:
            shown = {
                "title": notice.title,
                "parts": [dict(zip(notice.columns, row, strict=True)) for row in notice.rows],
            }
            phases = self.directory.read_record().get("phases", {})
            self.directory.update_record({"phases": {**phases, phase.name: shown}})
        remaining = phase.steps - self.progress.phase_step
        trainer = build_trainer(config.compute, device, remaining, config.sets.accumulation)
        rank, world = trainer.global_rank, trainer.world_size
        device_in_use = trainer.strategy.root_device
        on_gpu = device_in_use.type == "cuda"
        features = torch.from_numpy(self.cells.features)
        stage = Stage(
            config=config,
            network=network,
            validator=Validator(BatchMaker(self.samplers["val"], features, packed=on_gpu), rank, world),
            progress=self.progress,
            keeper=self.keeper,
            stop=stop,
            rank=rank,
            recorder=open_recorder(config, device_in_use, world),
            quick_eval=quick_eval,
            on_step=on_step,
            apart=frozenset() if attached is None else self.base_tensors.unchanged(attached.matrices()),
        )
        bar = PhaseBar(phase.name, phase.steps, self.progress.phase_step, on_step) if self.keeper is not None else None
        if bar is not None:
            stage.on_step, stage.on_row = bar.step, bar.row
        objective = Objective(config.loss, self.model, phase.decoder_weight, auxiliary)
        module = PhaseFit(stage, phase, sets, objective, self.state)
        sampler = self.samplers["train"] if world == 1 else _sampler(self.cells, config, "train", world)
        maker = BatchMaker(sampler, features, (rank, world), packed=on_gpu)
        start = self.progress.step * config.sets.accumulation
        positions = range(start, start + remaining * config.sets.accumulation)
        feed = self.feed = open_feed(maker, positions, self.reading.compute.workers, device_in_use)
        try:
            fit(trainer, module, feed)
        finally:
            if bar is not None:
                bar.close()
        if config.compute.strategy == "fsdp":
            network = self._whole_network(module.final_weights, device)
        network.to("cpu")
        if attached is not None and phase.lora is not None:
            attached.merge(phase.lora.scale)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        self.waited += feed.waited
        return network

    def _whole_network(self, weights: dict[str, Tensor], device: str) -> StateTransition:
        """The network with gathered weights; processes but the first hold none, and get theirs when it is sharded anew."""
        with torch.device("meta"):
            network = StateTransition(self.model)
        if self.keeper is None:
            network.to_empty(device="cpu")
        else:
            network.load_state_dict(weights, assign=True)
        make_ready(network, self.config.compute, device)
        return network


def _require_same_run(state: TrainerState, config: FinetuneConfig, directory: RunDirectory) -> None:
    if state["config_digest"] != config.digest():
        raise ConfigError(
            f"{directory.config_path} has changed since {directory.state_path.name} was written; a resumed run must be the "
            "same run. Restore it, or start another run with --init-from the best checkpoint"
        )


def _sampler(cells: TrainingCells, config: FinetuneConfig, part: Part, world_size: int = 1) -> CellSetSampler:
    """Sets of a part; in training `per_batch` sets for each of the processes."""
    sets = config.sets
    return CellSetSampler(
        cells,
        part,
        set_size=sets.size,
        sets_per_batch=sets.per_batch * world_size,
        seed=config.seed,
        mapping=sets.mapping,
        sampling=sets.sampling,
        controls_as_targets=sets.controls_as_targets,
        max_sets_per_group=config.checks.validation_sets,
    )


def _telling(report: Tell | None) -> Tell:
    def tell(notice: Notice) -> None:
        if not is_first_process():
            return
        for line in notice.lines():
            logger.debug(line)
        for text in notice.warnings:
            logger.warning("warning: %s", text)
        if report is not None:
            report(notice)

    return tell


def _uses_batches(config: FinetuneConfig, base: Base | None) -> bool:
    """Whether it matters of which batch a cell is: for its controls, or to the network."""
    network = base.source.config if base else None
    encoded = network is not None and (network.batch_encoder or network.batch_token)
    return config.sets.mapping == "batch" or config.network.batch_encoder or encoded
