"""The training objective: one loss for both heads, under names that say what they are.

Shape letters: B sets, S cells, G columns of the main head, D genes of the decoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from steval.model.config import ModelConfig
from steval.model.losses import build_loss
from steval.model.network import Prediction
from steval.trainer.config import ObjectiveSettings
from steval.trainer.fit.batches import Batch


class Objective:
    """Losses of a batch; `decoder_weight` overrides the settings' for a phase."""

    def __init__(self, settings: ObjectiveSettings, model: ModelConfig, decoder_weight: float | None = None):
        self._settings = settings
        self._loss = build_loss(settings)
        self._has_decoder = model.gene_decoder is not None
        self._main = "gene" if model.output_is_genes and not self._has_decoder else "embedding"
        self._decoder_weight = settings.decoder_weight if decoder_weight is None else decoder_weight

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses in the order of `__call__`'s vector; `total` is first."""
        settings = self._settings
        optional = {
            "confidence": settings.confidence_weight,
            "batch": settings.batch_weight,
            "change": settings.change_weight,
        }
        heads = ("embedding", "gene") if self._has_decoder else (self._main,)
        return ("total", *heads, *(name for name, weight in optional.items() if weight))

    def __call__(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Losses `[len(names)]` float32, each the mean over the sets of the batch; the first is what is minimised."""
        settings = self._settings
        main_B = self._loss(prediction.output_BSG, batch.target_BSG, batch.padding_BS).float()
        parts = [main_B.mean()]
        total = parts[0]
        if self._has_decoder:
            assert prediction.genes_BSD is not None and batch.genes_BSD is not None
            gene = self._loss(prediction.genes_BSD, batch.genes_BSD, batch.padding_BS).float().mean()
            total = total + self._decoder_weight * gene
            parts.append(gene)
        if settings.confidence_weight:
            assert prediction.confidence_B is not None
            parts.append(F.mse_loss(prediction.confidence_B.float(), main_B.detach()))
            total = total + settings.confidence_weight * parts[-1]
        if settings.batch_weight:
            assert prediction.batch_logits_BK is not None and batch.batch_BS is not None
            parts.append(F.cross_entropy(prediction.batch_logits_BK.float(), batch.batch_BS[:, 0]))
            total = total + settings.batch_weight * parts[-1]
        if settings.change_weight:
            parts.append((prediction.output_BSG - batch.control_BSG).abs().float().mean())
            total = total + settings.change_weight * parts[-1]
        return torch.stack([total, *parts])


def idle_parameters(settings: ObjectiveSettings, model: ModelConfig) -> tuple[str, ...]:
    """Beginnings of the names of parameters that no term of the objective reaches; they must not wait for gradients."""
    idle = []
    if not settings.confidence_weight:
        cells_see_it = model.attention == "bidirectional" and not model.mask_attn
        idle.append("confidence_token.confidence_projection" if cells_see_it else "confidence_token")
    if not settings.batch_weight:
        idle.append("batch_classifier")
        if model.mask_attn:
            idle.append("batch_token")
    return tuple(idle)
