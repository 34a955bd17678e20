"""The training objective: one loss for both heads and the terms beside it, under names that say what they are.

Shape letters: B sets, S cells, G columns of the main head, D genes of the decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from steval.errors import ConfigError
from steval.model.auxiliary import AuxiliaryHeads
from steval.model.config import ModelConfig
from steval.model.groups import AUXILIARY_PREFIX
from steval.model.loss_settings import AuxiliaryKind
from steval.model.losses import build_loss
from steval.model.network import Prediction
from steval.trainer.config import ObjectiveSettings
from steval.trainer.fit.batches import Batch


@dataclass(frozen=True)
class Term:
    """A loss beside those of the heads. A new one is its weight in `ObjectiveSettings` and its entry in `TERMS`."""

    name: str
    """As it is logged: `train/NAME` and `val/NAME`. Its weight is the setting `NAME_weight`; at 0 there is no such term."""
    value: Callable[[Prediction, Batch, Tensor], Tensor]
    """Of a prediction, its batch and the main head's loss `[B]`: the mean over the sets."""
    obstacle: Callable[[ModelConfig], str | None] = lambda model: None
    """What the network lacks for it."""
    reached: Callable[[ModelConfig], tuple[str, ...]] = lambda model: ()
    """Beginnings of the names of parameters that no other term reaches."""

    def weight(self, settings: ObjectiveSettings) -> float:
        """Its weight in the objective."""
        return float(getattr(settings, f"{self.name}_weight"))


def _confidence(prediction: Prediction, batch: Batch, main_B: Tensor) -> Tensor:
    assert prediction.confidence_B is not None
    return F.mse_loss(prediction.confidence_B.float(), main_B.detach())


def _batch(prediction: Prediction, batch: Batch, main_B: Tensor) -> Tensor:
    assert prediction.batch_logits_BK is not None and batch.batch_BS is not None
    return F.cross_entropy(prediction.batch_logits_BK.float(), batch.batch_BS[:, 0])


def _change(prediction: Prediction, batch: Batch, main_B: Tensor) -> Tensor:
    return (prediction.output_BSG - batch.control_BSG).abs().float().mean()


def _of_confidence(model: ModelConfig) -> tuple[str, ...]:
    cells_see_it = model.attention == "bidirectional" and not model.mask_attn
    return ("confidence_token.confidence_projection" if cells_see_it else "confidence_token",)


def _of_batch(model: ModelConfig) -> tuple[str, ...]:
    return ("batch_classifier", "batch_token") if model.mask_attn else ("batch_classifier",)


TERMS = (
    Term(
        "confidence",
        _confidence,
        lambda model: None if model.confidence_token else "the network has no confidence token",
        _of_confidence,
    ),
    Term("batch", _batch, lambda model: None if model.batch_token else "the network has no batch token", _of_batch),
    Term("change", _change),
)
"""Every term beside the heads' losses, in the order of logs."""


@dataclass(frozen=True)
class Auxiliary:
    """Heads on an auxiliary embedding and what each of their losses counts in a phase."""

    heads: AuxiliaryHeads
    weights: Mapping[AuxiliaryKind, float]


class Objective:
    """Losses of a batch; `decoder_weight` overrides the settings' for a phase, `auxiliary` adds heads."""

    def __init__(
        self,
        settings: ObjectiveSettings,
        model: ModelConfig,
        decoder_weight: float | None = None,
        auxiliary: Auxiliary | None = None,
    ):
        self._auxiliary = auxiliary
        self._loss = build_loss(settings)
        self._has_decoder = model.gene_decoder is not None
        self._main = "gene" if model.output_is_genes and not self._has_decoder else "embedding"
        self._decoder_weight = settings.decoder_weight if decoder_weight is None else decoder_weight
        self._terms = [(term, term.weight(settings)) for term in TERMS if term.weight(settings)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses in the order of `__call__`'s vector; `total` is first."""
        heads = ("embedding", "gene") if self._has_decoder else (self._main,)
        extra = () if self._auxiliary is None else self._auxiliary.heads.kinds
        return ("total", *heads, *(term.name for term, _ in self._terms), *extra)

    def __call__(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Losses `[len(names)]` float32, each the mean over the sets of the batch; the first is what is minimised."""
        main_B = self._loss(prediction.output_BSG, batch.target_BSG, batch.padding_BS).float()
        parts = [main_B.mean()]
        total = parts[0]
        if self._has_decoder:
            assert prediction.genes_BSD is not None and batch.genes_BSD is not None
            parts.append(self._loss(prediction.genes_BSD, batch.genes_BSD, batch.padding_BS).float().mean())
            total = total + self._decoder_weight * parts[-1]
        for term, weight in self._terms:
            parts.append(term.value(prediction, batch, main_B))
            total = total + weight * parts[-1]
        if self._auxiliary is not None:
            assert prediction.hidden_BSC is not None and batch.auxiliary_BA is not None
            read = self._auxiliary.heads(prediction.hidden_BSC, batch.padding_BS, batch.auxiliary_BA, batch.pert_BP)
            for kind, loss in read.items():
                parts.append(loss)
                total = total + self._auxiliary.weights[kind] * loss
        return torch.stack([total, *parts])


def require_terms(settings: ObjectiveSettings, model: ModelConfig) -> None:
    """A `ConfigError` that lists every term which the network cannot have."""
    problems = [
        f"loss.{term.name}_weight is {term.weight(settings):g}, and {obstacle}; set it to 0"
        for term in TERMS
        if term.weight(settings) and (obstacle := term.obstacle(model)) is not None
    ]
    if problems:
        raise ConfigError("the objective does not fit the network", problems)


def idle_parameters(
    settings: ObjectiveSettings, model: ModelConfig, auxiliary: Auxiliary | None = None
) -> tuple[str, ...]:
    """Beginnings of the names of parameters that no term of the objective reaches; they must not wait for gradients."""
    weights = {} if auxiliary is None else auxiliary.weights
    unread = [f"{AUXILIARY_PREFIX}{kind}" for kind, weight in weights.items() if not weight]
    return (*unread, *(name for term in TERMS if not term.weight(settings) for name in term.reached(model)))
