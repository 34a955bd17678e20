"""What an ST network is made of, as settings; torch-free so that a checkpoint can be inspected without torch.

Field meaning follows arc-state 0.11.1's observable behaviour (docs/checkpoints.md); names are ours.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from steval.limits import Count, Depth, Width
from steval.settings import Settings

Attention = Literal["bidirectional", "causal", "causal-rope"]
OutputSpace = Literal["gene", "all", "embedding"]
Head = Literal["down-then-up", "plain"]
Activation = Literal["gelu", "relu", "leakyrelu", "elu", "selu"]
"""Those that arc-state knows; letter case is ignored, as there."""


def _folded(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class LlamaConfig(Settings):
    """Llama blocks over the cells of a set (RMSNorm, attention without bias, SwiGLU)."""

    kind: Literal["llama"] = "llama"
    hidden_size: Width
    intermediate_size: Width
    num_layers: Depth
    num_heads: Depth
    num_key_value_heads: Depth
    head_dim: Width
    """Head size × heads need not equal the hidden size."""
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """Used by the `causal-rope` regime alone."""

    @model_validator(mode="after")
    def _grouped_heads(self) -> "LlamaConfig":
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


class Gpt2Config(Settings):
    """GPT-2 blocks without position embedding."""

    kind: Literal["gpt2"] = "gpt2"
    hidden_size: Width
    intermediate_size: Width
    num_layers: Depth
    num_heads: Depth
    norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _whole_heads(self) -> "Gpt2Config":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads})")
        return self


class GeneDecoderConfig(Settings):
    """Latent → genes: `[Linear, LayerNorm, GELU, Dropout]*, Linear, ReLU`; or the residual form."""

    latent_dim: Width
    gene_dim: Width
    hidden_dims: tuple[Width, ...]
    dropout: float = Field(default=0.1, ge=0, lt=1)
    residual: bool = False
    """Block i adds the output of block i-1 to its own for odd i."""

    @model_validator(mode="after")
    def _equal_pairs(self) -> "GeneDecoderConfig":
        pairs = list(zip(self.hidden_dims[0::2], self.hidden_dims[1::2], strict=False))
        if self.residual and any(even != odd for even, odd in pairs):
            raise ValueError(
                f"hidden_dims {self.hidden_dims} of a residual decoder must be equal in pairs (0=1, 2=3, ...)"
            )
        return self


class ModelConfig(Settings):
    """Everything needed to build the ST network (docs/architecture.md, The network); the weights then load by name."""

    input_dim: Width
    """Columns of the basal input: genes, highly variable genes or embedding dimensions."""
    output_dim: Width
    pert_dim: Width
    hidden_dim: Width
    """Token size; the backbone's hidden size."""
    batch_dim: Width | None = None
    """Number of batch codes; needed by `batch_encoder` and `batch_token`."""
    input_key: str | None = None
    """`obsm` key of the basal input; none means X (genes)."""
    output_space: OutputSpace = "all"
    num_encoder_layers: Depth = 2
    num_decoder_layers: Depth = 2
    """Layers of `project_out`."""
    activation: Annotated[Activation, BeforeValidator(_folded)] = "gelu"
    """Of the encoders and `project_out`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    predict_residual: bool = True
    use_basal_projection: bool = True
    head: Head = "down-then-up"
    """Residual branch in output space `all`: arc-state's `final_down_then_up(project_out(h) + basal)`, or a plain
    `project_out(h) + basal`."""
    backbone: Annotated[LlamaConfig | Gpt2Config, Field(discriminator="kind")]
    attention: Attention = "bidirectional"
    mask_attn: bool = False
    """Each cell attends to itself alone."""
    batch_encoder: bool = False
    batch_token: bool = False
    confidence_token: bool = False
    gene_decoder: GeneDecoderConfig | None = None
    cell_set_size: Count = 64
    """Cells per set that the network was trained with."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        problems = []
        if self.backbone.hidden_size != self.hidden_dim:
            problems.append(f"backbone.hidden_size {self.backbone.hidden_size} is not hidden_dim {self.hidden_dim}")
        if (self.batch_encoder or self.batch_token) and self.batch_dim is None:
            problems.append("batch_encoder and batch_token need batch_dim")
        if self.gene_decoder and self.gene_decoder.latent_dim != self.output_dim:
            problems.append(
                f"gene_decoder.latent_dim {self.gene_decoder.latent_dim} is not output_dim {self.output_dim}"
            )
        if self.predict_residual and self.output_space == "all" and self.output_dim != self.input_dim:
            problems.append(
                f"output space `all` adds the input to the output: output_dim {self.output_dim} must equal "
                f"input_dim {self.input_dim}"
            )
        if self.has_bottleneck and self.output_dim < 8:
            problems.append(
                f"head `down-then-up` has a bottleneck of an eighth of the outputs: 8 at least, got {self.output_dim}; "
                "head `plain` takes any number"
            )
        if self.attention == "causal-rope" and self.backbone.kind == "gpt2":
            problems.append("attention `causal-rope` is for llama; gpt2 takes `bidirectional` or `causal`")
        if self.attention == "causal-rope" and self.backbone.kind == "llama" and self.backbone.head_dim % 2:
            problems.append(f"attention `causal-rope` needs an even head_dim, got {self.backbone.head_dim}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def batch_codes(self) -> int:
        """`batch_dim` of a network that has a batch encoder or token."""
        assert self.batch_dim is not None
        return self.batch_dim

    @property
    def prediction_dim(self) -> int:
        """Columns of a prediction: output genes, or embedding dimensions."""
        return self.gene_decoder.gene_dim if self.gene_decoder else self.output_dim

    @property
    def has_bottleneck(self) -> bool:
        """Whether `final_down_then_up` belongs to the network."""
        return self.predict_residual and self.output_space == "all" and self.head == "down-then-up"

    @property
    def input_is_genes(self) -> bool:
        """Whether the basal input is expression (X or `X_hvg`) and not an embedding."""
        return self.input_key in (None, "X_hvg")

    @property
    def output_is_genes(self) -> bool:
        """Whether the main head's output is expression; then it ends in a ReLU (docs/architecture.md, The network)."""
        return self.input_is_genes or self.gene_decoder is None
