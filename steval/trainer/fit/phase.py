"""One phase as a Lightning module: fresh optimiser and schedule, and what happens between the steps.

All processes run the same code and agree on every decision; only the first one writes (its `keeper` is not None).
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from steval.model.auxiliary import without_heads
from steval.model.lora import merged, named, split_pairs
from steval.model.network import StateTransition
from steval.trainer.config import FinetuneConfig
from steval.trainer.fit.averaging import WeightAverage
from steval.trainer.fit.batches import Batch, PackedBatch
from steval.trainer.fit.devices import drawing_from
from steval.trainer.fit.objective import Objective
from steval.trainer.fit.optimiser import (
    ParameterSet,
    build_optimiser,
    optimiser_state,
    rates_at,
    restore_optimiser,
    scale_to,
    set_rates,
)
from steval.trainer.fit.replay import Recorder, ReplayedStep
from steval.trainer.fit.sharding import joint_norms, local, shard, whole
from steval.trainer.fit.validation import Validator
from steval.trainer.fit.window import DivergenceError, Window, window_row
from steval.trainer.progress.keeper import Keeper, QuickEval
from steval.trainer.progress.state import STATE_FORMAT, Progress, TrainerState
from steval.trainer.progress.stopping import StopSignal
from steval.trainer.settings.phases import PhaseSettings

_DROPOUT = 7
"""Stream of random numbers under the run's seed."""


@dataclass
class Stage:
    """What a phase works with, besides its own settings."""

    config: FinetuneConfig
    network: StateTransition
    validator: Validator
    progress: Progress
    keeper: Keeper | None
    """None on all processes but the first."""
    stop: StopSignal
    rank: int
    recorder: Recorder | None = None
    """What records the steps, to be replayed; None: every step is computed as it comes."""
    quick_eval: QuickEval | None = None
    on_step: Callable[[Progress], None] | None = None
    on_row: Callable[[Progress, Mapping[str, float]], None] | None = None
    apart: frozenset[str] = frozenset()
    """Weights that are the base's, whose LoRA adapters a file beside it can hold."""


class PhaseFit(L.LightningModule):
    """Trains `stage.network` for one phase, from `stage.progress.phase_step` on; `resumed` is the state to take up."""

    def __init__(
        self,
        stage: Stage,
        phase: PhaseSettings,
        sets: list[ParameterSet],
        objective: Objective,
        resumed: TrainerState | None,
    ):
        super().__init__()
        self.stage = stage
        self.phase = phase
        self.network = stage.network
        self.objective = objective
        self._sets = sets
        self._resumed = resumed
        self._trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        labels = {name: group.label for group in sets for name in group.names}
        self._window = Window(objective.names, list(self._trainable), [labels[name] for name in self._trainable])
        self._losses: list[Tensor] = []
        self._average: WeightAverage | None = None
        self._has_dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self.network.modules())
        compiled = torch.compile(self.network) if stage.config.compute.compile else self.network
        self._predict = compiled.__call__
        self._replayed: ReplayedStep | None = None
        self.final_weights: dict[str, Tensor] = {}
        """Of a phase that has ended with sharded weights: whole, on the first process."""
        self.automatic_optimization = stage.recorder is None
        self._clock = time.perf_counter()

    # What Lightning calls, in order.

    def configure_model(self) -> None:
        if self.stage.config.compute.strategy != "fsdp":
            return
        assert self.device_mesh is not None
        shard(self.network, self.device_mesh["data_parallel"])
        self._trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recorded = self.stage.recorder is not None
        optimiser = build_optimiser(
            self.network, self._sets, self.stage.config.optimiser, self.device, recorded=recorded
        )
        if self._resumed is not None:
            restore_optimiser(optimiser, self._resumed["optimiser"])
        return optimiser

    def on_train_start(self) -> None:
        self.stage.stop.listen()
        self.network.train()
        if self.stage.config.average_weights is not None:
            self._average = WeightAverage(self.network, self.stage.config.average_weights)
        if self._resumed is not None:
            self._window.restore(self._resumed["window"], self.device)
            if self._average is not None:
                self._average.restore(self._resumed["average"])
            self._resumed = None
        if self.stage.recorder is not None:
            self._replayed = ReplayedStep(self._whole_step, self.device, self.stage.recorder)
        self._clock = time.perf_counter()
        if self.stage.progress.phase_step == 0:
            self._row(self._validated())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx % self.stage.config.sets.accumulation == 0:
            set_rates(self._optimiser, self.phase, self.stage.progress.phase_step)

    def training_step(self, batch: Batch | PackedBatch, batch_idx: int) -> Tensor | None:
        with self._seeded(batch_idx):
            if isinstance(batch, PackedBatch):
                assert self._replayed is not None
                self._window.add_row(self._replayed(batch))
                return None
            losses = self._computed(batch)
        self._losses.append(losses.detach())
        return losses[0]

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        norms, total = self._gradient_norms()
        self._window.add(torch.stack(self._losses).mean(0), norms)
        self._losses = []
        if self.device.type == "cpu" and not self._window.latest_is_finite:
            self._window.require_finite(self.stage.progress.step + 1)
        self._clip(total)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if (batch_idx + 1) % self.stage.config.sets.accumulation:
            return
        progress, checks = self.stage.progress, self.stage.config.checks
        progress.advance()
        if self._average is not None:
            self._average.update(progress.phase_step)
        step, last = progress.phase_step, progress.phase_step == self.phase.steps
        stopping = self.stage.stop.requested(progress.step)
        values: dict[str, float] = {}
        if last or step % checks.log_every == 0:
            values |= self._logged()
        if last or step % checks.validate_every == 0:
            values |= self._validated()
        if values:
            self._row(values)
        if checks.keep_every and step % checks.keep_every == 0:
            self._keep_step()
        if last or stopping or step % checks.save_every == 0:
            self._save_state()
        if self.stage.keeper is not None:
            self.stage.keeper.check()
        if self.stage.on_step is not None:
            self.stage.on_step(progress)
        if stopping:
            self.trainer.should_stop = True

    def transfer_batch_to_device(
        self, batch: PackedBatch, device: torch.device, dataloader_idx: int
    ) -> Batch | PackedBatch:
        return batch.to(device) if self._replayed is None else batch

    def on_train_end(self) -> None:
        if self.stage.config.compute.strategy == "fsdp":
            self.final_weights = self._weights()
        if self.stage.keeper is not None:
            self.stage.keeper.flush()
        if self._replayed is not None:
            self._replayed.release()

    # What these are made of.

    def _computed(self, batch: Batch) -> Tensor:
        """Losses of the objective."""
        prediction = self._predict(batch.control_BSG, batch.pert_BP, batch.batch_BS, batch.padding_BS)
        return self.objective(prediction, batch)

    def _whole_step(self, batch: Batch) -> Tensor:
        """One optimiser step, the same that Lightning's hooks make of the parts; its row of the window."""
        for parameter in self._trainable.values():
            parameter.grad = None
        kind = self.device.type
        # weights cast once for all steps would be those of the recorded one
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            losses = self._computed(batch)
        with torch.autocast(kind, enabled=False):
            losses[0].backward()
            norms, total = self._gradient_norms()
            self._clip(total)
            self._optimiser.step()
        return window_row(losses, norms)

    def _gradient_norms(self) -> tuple[Tensor, Tensor]:
        """Norm of each trainable tensor's gradient, and of all together."""
        pieces = torch._foreach_norm([_zero_if_none(p) for p in self._trainable.values()])
        norms = joint_norms(torch.stack(pieces), self._trainable.values())
        return norms, torch.linalg.vector_norm(norms)

    def _clip(self, total: Tensor) -> None:
        gradients = local(p.grad for p in self._trainable.values() if p.grad is not None)
        scale_to(gradients, total, self.stage.config.optimiser.clip)

    @property
    def _optimiser(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def _seeded(self, batch_idx: int) -> AbstractContextManager[None]:
        """Dropout's random numbers are a function of seed, step, batch and process, so that nothing needs to be carried over."""
        if not self._has_dropout:
            return nullcontext()
        config, stage = self.stage.config, self.stage
        return drawing_from(
            self.device,
            config.seed, _DROPOUT, stage.progress.step, batch_idx % config.sets.accumulation, stage.rank,
        )  # fmt: skip

    def _tick(self) -> None:
        now = time.perf_counter()
        self.stage.progress.seconds += now - self._clock
        self._clock = now

    def _logged(self) -> dict[str, float]:
        self._window.require_finite(self.stage.progress.step)
        self._window.share()
        values = self._window.flush()
        rates = rates_at(self._optimiser, self.phase, self.stage.progress.phase_step - 1)
        return values | {f"lr/{label}": rate for label, rate in rates.items()}

    def _row(self, values: dict[str, float]) -> None:
        self._tick()
        if self.stage.keeper is not None:
            self.stage.keeper.log(self.stage.progress, values)
        if self.stage.on_row is not None:
            self.stage.on_row(self.stage.progress, values)

    def _weights(self) -> dict[str, Tensor]:
        """Whole tensors, on the first process; all must ask for them where they are sharded."""
        return whole({name: tensor.detach() for name, tensor in self.network.state_dict().items()})

    def _kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of `state` as a checkpoint has them: LoRA adapters added, without heads on an auxiliary embedding."""
        weights, pairs = split_pairs(without_heads(state))
        return weights if self.phase.lora is None else merged(weights, pairs, self.phase.lora.scale)

    def _adapter(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """LoRA matrices of `state` that a file beside the base can hold, copied."""
        pairs = split_pairs(state)[1]
        apart = {name: pair for name, pair in pairs.items() if name in self.stage.apart}
        return {name: tensor.to("cpu", copy=True) for name, tensor in named(apart).items()}

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.in_place()

    def _validated(self) -> dict[str, float]:
        """Validation losses (and a quick evaluation when due) of the weights to keep; writes the best checkpoint."""
        self._window.require_finite(self.stage.progress.step)
        progress, config = self.stage.progress, self.stage.config
        bf16 = torch.bfloat16 if config.compute.precision == "bf16-mixed" else None
        with self._averaged():
            values = self.stage.validator(self.network, self.objective, self.device, bf16)
            broken = [
                name for name, value in values.items() if value != value or value in (float("inf"), -float("inf"))
            ]
            if broken:
                raise DivergenceError(
                    f"training stopped at step {progress.step}: not finite: {', '.join(broken)}. The last good checkpoint is kept"
                )
            progress.phases[-1]["validation"] = dict(values)
            values |= self._quickly_evaluated(values)
            self._keep_if_best(values)
        return values

    def _quickly_evaluated(self, validation: dict[str, float]) -> dict[str, float]:
        every = self.stage.config.checks.quick_eval_every
        due = every and self.stage.progress.phase_step and self._is_nth_validation(every)
        if not due or self.stage.quick_eval is None:
            return {}
        values: dict[str, float] = {}
        weights = self._weights()
        if self.stage.keeper is not None:
            scores = self.stage.quick_eval(
                self.stage.keeper.checkpoint(self._kept(weights), self.stage.progress, validation)
            )
            values = {f"eval/{name}": float(value) for name, value in scores.items()}
        return self.trainer.strategy.broadcast(values)

    def _is_nth_validation(self, every: int) -> bool:
        number = -(-self.stage.progress.phase_step // self.stage.config.checks.validate_every)
        return number % every == 0 or self.stage.progress.phase_step == self.phase.steps

    def _keep_if_best(self, values: dict[str, float]) -> None:
        progress, metric = self.stage.progress, self.stage.config.checks.select_best
        if metric not in values or not progress.is_better(values[metric], self.stage.config.best_is_lowest):
            return
        progress.note_best(metric, values[metric])
        weights = self._weights()
        if self.stage.keeper is not None:
            keeper = self.stage.keeper
            progress.best_adapter = self._adapter(weights)
            keeper.write_best(keeper.checkpoint(self._kept(weights), progress, values), progress)

    def _keep_step(self) -> None:
        keeper, progress = self.stage.keeper, self.stage.progress
        self._window.require_finite(progress.step)
        with self._averaged():
            weights = self._weights()
            if keeper is None:
                return
            checkpoint = keeper.checkpoint(self._kept(weights), progress, progress.phases[-1]["validation"])
            keeper.write(keeper.directory.step_path(progress.step), checkpoint)

    def _save_state(self) -> None:
        self._window.require_finite(self.stage.progress.step)
        self._window.share()
        self._tick()
        weights, optimiser = self._weights(), whole(optimiser_state(self._optimiser))
        if self.stage.keeper is None:
            return
        progress = self.stage.progress
        self.stage.keeper.save_state(
            TrainerState(
                format=STATE_FORMAT,
                config_digest=self.stage.config.digest(),
                phase=progress.phase,
                phase_step=progress.phase_step,
                step=progress.step,
                weights=weights,
                average={} if self._average is None else self._average.state(),
                optimiser=optimiser,
                window=self._window.rows(),
                best=progress.best,
                best_digest=progress.best_digest,
                best_adapter=progress.best_adapter,
                phases=progress.phases,
                seconds=progress.seconds,
            ),
            progress,
        )


def _zero_if_none(parameter: Tensor) -> Tensor:
    """This process's piece of a gradient."""
    return torch.zeros((), device=parameter.device) if parameter.grad is None else local([parameter.grad])[0]
