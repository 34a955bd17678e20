"""Where the layers that a run draws anew start, by what the training data says; docs/decisions/005 has the evidence.

Two ends of the network know nothing of the data when they are drawn at random, and on a screen of thousands of genes hundreds
of steps pass before perturbations differ at all:

- `pert_encoder`'s first layer is drawn for features of unit variance. One-hot features of P perturbations have a total
  variance of 1 instead of P, so that the perturbation is lost beside the cell. The drawn layer is kept, behind a
  standardisation of the features.
- The last layer of `project_out` leads from H features to G genes, and its drawn columns are noise in every gene. Here the
  first columns are the principal axes of the training effects (perturbation × context), each as long as the effects spread
  along it; the other columns are zero, the bias is the mean effect.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from steval.checkpoints.transplant import TransplantReport
from steval.data.effects.measure import measure_training
from steval.data.effects.record import TrainingEffects
from steval.data.training.cells import TrainingCells
from steval.model.config import ModelConfig
from steval.trainer.settings.network import NetworkSettings
from steval.wording import counted

ENCODER = "pert_encoder.0"
MOST_PAIRS = 2000
"""Pairs of perturbation and context, those with the most cells, that the axes are computed from."""
SHARE = 2
"""One in so many features leads along an axis; the others are free."""
HALF_TRUSTED = 32
"""Cells of a pair at which its effect weighs half of what a pair of very many cells does."""


def start_from_data(
    settings: NetworkSettings,
    model: ModelConfig,
    cells: TrainingCells,
    drawn: Mapping[str, Tensor],
    transplant: TransplantReport | None,
) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...]]:
    """The tensors that are to replace drawn ones, and for each of the two ends what was done, for the run's report.

    `drawn` is the complete state dict; what `transplant` took from a checkpoint stays.
    """
    new = set(drawn) if transplant is None else set(transplant.names("re-initialised"))
    random = "drawn at random"
    last = last_layer(model)
    tensors: dict[str, Tensor] = {}
    encoder = outputs = random
    if f"{ENCODER}.weight" not in new:
        encoder = "the checkpoint's"
    elif settings.initial_weights == "data":
        changed, scale = encoder_for_features(drawn, torch.from_numpy(cells.features))
        tensors |= changed
        encoder = f"drawn for standardised features (× {scale:.3g})"
    if f"{last}.weight" not in new:
        outputs = "the checkpoint's"
    elif settings.initial_weights == "data":
        reason = reason_for_random(model)
        if reason is None:
            effects, _ = measure_training(cells)
            changed, num_axes = outputs_from_effects(model, effects)
            tensors |= changed
            axes = counted(num_axes, "principal axis", "principal axes")
            outputs = f"mean and {axes} of {counted(effects.num_pairs, 'training effect')}"
        else:
            outputs = f"{random} ({reason})"
    return tensors, (("perturbation encoder, first layer", encoder), ("project_out, last layer", outputs))


def encoder_for_features(drawn: Mapping[str, Tensor], features_NP: Tensor) -> tuple[dict[str, Tensor], float]:
    """The first layer of the perturbation encoder behind a standardisation of `features_NP`, and the factor of its weights.

    With W, b the drawn layer, m the features' mean and v their total variance: `√(P/v) · W (f - m) + b`. All features alike
    (v = 0): unchanged, factor 1.
    """
    weight, bias = drawn[f"{ENCODER}.weight"].double(), drawn[f"{ENCODER}.bias"].double()
    mean_P = features_NP.double().mean(dim=0)
    variance = float((features_NP.double() - mean_P).square().sum(dim=1).mean())
    if not variance > 0:
        return {}, 1.0
    scale = (features_NP.shape[1] / variance) ** 0.5
    scaled = weight * scale
    return {f"{ENCODER}.weight": scaled.float(), f"{ENCODER}.bias": (bias - scaled @ mean_P).float()}, scale


def reason_for_random(model: ModelConfig) -> str | None:
    """Why the last layer of a network of `model` cannot start from effects; None where it can."""
    if model.gene_decoder is not None or not model.input_is_genes:
        return "the input is an embedding"
    if not model.predict_residual or model.output_space != "all":
        return "its output is not added to the control cells"
    if model.has_bottleneck:
        return f"the head {model.head} stands behind it"
    return None


def last_layer(model: ModelConfig) -> str:
    """Name of the last layer of `project_out`, before `.weight` and `.bias`."""
    return f"project_out.{3 * (model.num_decoder_layers - 1)}"


def outputs_from_effects(model: ModelConfig, effects: TrainingEffects) -> tuple[dict[str, Tensor], int]:
    """Weight `[G,H]` and bias `[G]` of the last layer by parameter name, and the number of axes in it."""
    chosen = np.sort(np.argsort(-effects.num_cells, kind="stable")[:MOST_PAIRS])
    rows = effects.effects[chosen].astype(np.float64)
    cells = effects.num_cells[chosen]
    weights = cells / (cells + HALF_TRUSTED)
    weights /= weights.sum()
    mean = weights @ rows
    axes, spread = principal_axes((rows - mean) * np.sqrt(weights)[:, None], model.hidden_dim // SHARE)
    weight = np.zeros((rows.shape[1], model.hidden_dim), dtype=np.float32)
    weight[:, : len(spread)] = axes.T * spread
    name = last_layer(model)
    tensors = {
        f"{name}.weight": torch.from_numpy(weight),
        f"{name}.bias": torch.from_numpy(mean.astype(np.float32)),
    }
    return tensors, len(spread)


def principal_axes(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` right singular vectors `[R,G]` of `rows [K,G]` (float64) and their singular values `[R]`, largest first.

    Each points to where its largest entry is positive. Directions under a millionth of the first are left out.
    """
    values, vectors = np.linalg.eigh(rows @ rows.T)
    order = np.argsort(-values, kind="stable")[:most]
    order = order[values[order] > 1e-12 * max(float(values.max()), 1e-300)]
    spread = np.sqrt(values[order])
    axes = (vectors[:, order].T @ rows) / spread[:, None]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.where(largest < 0, -1.0, 1.0), spread
