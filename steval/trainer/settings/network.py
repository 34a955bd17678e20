"""The network of a run: the checkpoint's, changed where the data or the configuration says so, or a fresh one; torch-free."""

from typing import Any, Literal

from pydantic import Field

from steval.data.training.cells import TrainingCells
from steval.limits import Depth, Width
from steval.model.config import Activation, Attention, GeneDecoderConfig, Head, LlamaConfig, ModelConfig, OutputSpace
from steval.settings import Settings

DEFAULT_DECODER = (1024, 1024, 512)
"""Hidden sizes of a gene decoder that replaces none, from an embedding to genes."""


class NetworkSettings(Settings):
    """A network to start from nothing; with `--init-from`, fields left out follow the checkpoint."""

    hidden_dim: Width = 128
    """Token size."""
    num_layers: Depth = 2
    """Backbone blocks."""
    num_heads: Depth = 4
    """Attention heads."""
    num_key_value_heads: Depth | None = None
    """Key and value heads, a divisor of `num_heads`; none: as many."""
    head_dim: Width | None = None
    """Head size; none: `hidden_dim` shared out over the heads."""
    intermediate_dim: Width | None = None
    """Inner size of a block's MLP; none: four times `hidden_dim`."""
    num_encoder_layers: Depth = 2
    """Layers of the perturbation and basal encoders."""
    num_decoder_layers: Depth = 2
    """Layers of `project_out`."""
    activation: Activation = "gelu"
    """Of encoders and `project_out`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of encoders, `project_out` and gene decoder."""
    attention: Attention = "bidirectional"
    """Regime of the backbone (docs/checkpoints.md)."""
    mask_attn: bool = False
    """Each cell attends to itself alone."""
    head: Head = "plain"
    """Residual head in output space `all`: `project_out(h) + basal`, or arc-state's bottleneck `down-then-up` behind it,
    which has to learn the cells anew before it learns what changes them."""
    output_space: OutputSpace = "all"
    """`all`: the input's own genes; `embedding`: the embedding; `gene`: arc-state's name for `X_hvg`."""
    predict_residual: bool = True
    """Whether the network predicts the difference to the basal cells."""
    use_basal_projection: bool = True
    """MLP, not a single linear layer, as basal encoder."""
    batch_encoder: bool = False
    """Add an embedding of the batch to each cell."""
    gene_decoder: tuple[Width, ...] | None = None
    """Hidden sizes of a decoder from an embedding to genes; none: no decoder."""
    initial_weights: Literal["data", "random"] = "data"
    """Where layers that no checkpoint brings start. `data`: the perturbation encoder as drawn for standardised features, the
    last layer of `project_out` at the mean of the training effects and the axes along which they differ (where it adds to
    expression and no `down-then-up` stands behind it); `random`: as drawn. The run says which it was."""


SIZES = frozenset({"hidden_dim", "num_layers", "num_heads", "head_dim", "intermediate_dim"})


def names_backbone(settings: NetworkSettings) -> bool:
    """Whether a configuration says how large its own backbone is, as one for a network from nothing does."""
    return bool(SIZES & settings.model_fields_set)


def plan_network(
    settings: NetworkSettings, cells: TrainingCells, cell_set_size: int, source: ModelConfig | None
) -> ModelConfig:
    """The model config for `cells`; with a `source`, only fields named in `settings` differ from it, and what the data changes.

    Expression in: output space and columns are the input's, no gene decoder. Embedding in: the decoder leads to the gene contract.
    """
    values = _fresh(settings) if source is None else source.as_dict()
    if source is not None:
        named = {name: getattr(settings, name) for name in settings.model_fields_set}
        values |= {name: value for name, value in named.items() if name in values and name not in _SHAPED}
        values["backbone"] |= _backbone_changes(named)
        values["hidden_dim"] = named.get("hidden_dim", values["hidden_dim"])
    return ModelConfig.parse(values | _from_data(settings, cells, cell_set_size, values), source="the network")


def describe_network(model: ModelConfig, settings: NetworkSettings) -> NetworkSettings:
    """Settings that say what `model` is; a configuration with them plans the same network again."""
    backbone, values = model.backbone, model.as_dict()
    same = {name: values[name] for name in NetworkSettings.model_fields if name in values and name != "gene_decoder"}
    return settings.model_copy(
        update={
            **same,
            "num_layers": backbone.num_layers,
            "num_heads": backbone.num_heads,
            "num_key_value_heads": backbone.num_key_value_heads if isinstance(backbone, LlamaConfig) else None,
            "head_dim": backbone.head_dim if isinstance(backbone, LlamaConfig) else None,
            "intermediate_dim": backbone.intermediate_size,
            "gene_decoder": model.gene_decoder.hidden_dims if model.gene_decoder else None,
        }
    )


_SHAPED = ("hidden_dim", "gene_decoder")
"""Fields of the network that need more than being copied."""


def _fresh(settings: NetworkSettings) -> dict[str, Any]:
    shared = {
        name: getattr(settings, name) for name in NetworkSettings.model_fields if name in ModelConfig.model_fields
    }
    backbone = LlamaConfig(
        hidden_size=settings.hidden_dim,
        intermediate_size=settings.intermediate_dim or 4 * settings.hidden_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        num_key_value_heads=settings.num_key_value_heads or settings.num_heads,
        head_dim=settings.head_dim or max(settings.hidden_dim // settings.num_heads, 1),
    )
    return {**shared, "backbone": backbone.as_dict(), "gene_decoder": None, "input_key": None, "input_dim": None}


def _backbone_changes(named: dict[str, Any]) -> dict[str, Any]:
    """Backbone fields for the network settings that were named."""
    places = {
        "hidden_dim": "hidden_size",
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "intermediate_dim": "intermediate_size",
    }
    return {place: named[name] for name, place in places.items() if named.get(name) is not None}


def _from_data(
    settings: NetworkSettings, cells: TrainingCells, cell_set_size: int, values: dict[str, Any]
) -> dict[str, Any]:
    in_genes = cells.input_genes is not None
    same_input = values["input_key"] == cells.input_key and values["input_dim"] is not None
    changes: dict[str, Any] = {
        "input_dim": cells.input_dim,
        "output_dim": cells.input_dim,
        "pert_dim": cells.pert_dim,
        "input_key": cells.input_key,
        "cell_set_size": cell_set_size,
        "gene_decoder": None if in_genes and cells.input_is_target else _decoder(settings, cells, values),
    }
    if values["batch_encoder"] or values.get("batch_token"):
        changes["batch_dim"] = len(cells.batches)
    if not same_input and "output_space" not in settings.model_fields_set:
        changes["output_space"] = "all"
    return changes


def _decoder(settings: NetworkSettings, cells: TrainingCells, values: dict[str, Any]) -> dict[str, Any] | None:
    """The decoder to the gene contract: the one named, else the checkpoint's with its own sizes."""
    stored = values["gene_decoder"]
    if settings.gene_decoder is None and stored is None:
        return None
    base = (
        stored
        or GeneDecoderConfig(latent_dim=1, gene_dim=1, hidden_dims=DEFAULT_DECODER, dropout=settings.dropout).as_dict()
    )
    hidden = settings.gene_decoder if "gene_decoder" in settings.model_fields_set else base["hidden_dims"]
    return {**base, "hidden_dims": hidden, "latent_dim": cells.input_dim, "gene_dim": len(cells.genes)}
