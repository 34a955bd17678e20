"""The State Transition network (arXiv "State", Arc Institute 2025), parity with arc-state 0.11.1 to 1e-5 relative.

A cell set of S control cells and a perturbation go in; the set as it would look perturbed comes out. Parameter names
equal arc-state's, so its state dicts load by name; what upstream stores and never reads is absent
(`steval.model.groups.is_unused`). There are no buffers: a network built on the meta device takes its weights by
`load_state_dict(assign=True)`.

Shape letters: B sets, S cells of a set, T tokens (S cells and the extra tokens), G basal features (and the columns of
the main output), P perturbation features, C hidden size, D genes of the gene decoder, K batch codes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.attention import plan_attention
from steval.model.auxiliary import AuxiliaryHeads
from steval.model.config import Attention, LlamaConfig, ModelConfig
from steval.model.decoder import ConfidenceToken, build_gene_decoder
from steval.model.gpt2 import Gpt2
from steval.model.llama import Llama
from steval.model.mlp import DownThenUp, Mlp


class Prediction(NamedTuple):
    """What one forward pass gives; rows that are padding are zero."""

    output_BSG: Tensor
    """Main head: expression on the input's scale (not negative), or an embedding (`ModelConfig.output_is_genes`)."""
    genes_BSD: Tensor | None
    """The gene decoder's expression, not negative; None without a decoder."""
    confidence_B: Tensor | None
    """Predicted loss of each set; None without a confidence token."""
    batch_logits_BK: Tensor | None
    """Batch code read from the batch token; None without one."""
    hidden_BSC: Tensor | None = None
    """The backbone's output of each cell, for losses on it; None where an arrangement for prediction leaves it out."""


class Hidden(NamedTuple):
    """The backbone's output, extra tokens apart."""

    cells_BSC: Tensor
    batch_token_BC: Tensor | None
    confidence_token_BC: Tensor | None


class StateTransition(nn.Module):
    """The network of `config`; `attention` overrides the regime recorded there."""

    def __init__(self, config: ModelConfig, attention: Attention | None = None):
        super().__init__()
        self.config = config if attention is None else ModelConfig.parse({**config.as_dict(), "attention": attention})
        hidden, depth = config.hidden_dim, config.num_encoder_layers
        self.pert_encoder = Mlp(config, config.pert_dim, hidden, depth)
        self.basal_encoder: nn.Module = (
            Mlp(config, config.input_dim, hidden, depth)
            if config.use_basal_projection
            else nn.Linear(config.input_dim, hidden)
        )
        self.batch_encoder = nn.Embedding(config.batch_codes, hidden) if config.batch_encoder else None
        self.batch_token = nn.Parameter(torch.randn(1, 1, hidden)) if config.batch_token else None
        self.batch_classifier = nn.Sequential(nn.Linear(hidden, config.batch_codes)) if config.batch_token else None
        self.confidence_token = ConfidenceToken(hidden, config.dropout) if config.confidence_token else None
        self.transformer_backbone = (
            Llama(config.backbone) if isinstance(config.backbone, LlamaConfig) else Gpt2(config.backbone)
        )
        self.project_out = Mlp(config, hidden, config.output_dim, config.num_decoder_layers)
        self.final_down_then_up = DownThenUp(config.output_dim) if config.has_bottleneck else None
        self.gene_decoder = build_gene_decoder(config.gene_decoder) if config.gene_decoder else None
        self.auxiliary: AuxiliaryHeads | None = None
        """What training alone attaches; not called here."""

    def forward(
        self,
        control_BSG: Tensor,
        pert_BSP: Tensor,
        batch_BS: Tensor | None = None,
        padding_BS: Tensor | None = None,
    ) -> Prediction:
        """Predict perturbed cells from control cells.

        `control_BSG` on the checkpoint's scale; `pert_BSP` the perturbation's features, `[B,P]` or `[B,1,P]` where all
        cells of a set share them; `batch_BS` int64 codes, needed by a batch encoder alone; `padding_BS` bool, True
        where a row is padding (finite values of any kind): it changes nothing in the other rows.
        """
        basal_BSC = self.basal_encoder(control_BSG)
        hidden = self.run_backbone(self.embed(basal_BSC, pert_BSP, batch_BS), padding_BS)
        output_BSG = self.run_head(hidden.cells_BSC, control_BSG, basal_BSC)
        genes_BSD = None if self.gene_decoder is None else self.gene_decoder(output_BSG)
        if padding_BS is not None:
            output_BSG = output_BSG.masked_fill(padding_BS[..., None], 0)
            genes_BSD = None if genes_BSD is None else genes_BSD.masked_fill(padding_BS[..., None], 0)
        confidence_B, logits_BK = self.confidence(hidden), self.batch_logits(hidden)
        return Prediction(output_BSG, genes_BSD, confidence_B, logits_BK, hidden.cells_BSC)

    def embed(self, basal_BSC: Tensor, pert_BSP: Tensor, batch_BS: Tensor | None) -> Tensor:
        """Token of each cell `[B,S,C]`: basal encoding + perturbation encoding (+ batch embedding)."""
        if pert_BSP.dim() == 2:
            pert_BSP = pert_BSP[:, None]
        tokens_BSC = basal_BSC + self.pert_encoder(pert_BSP)
        if self.batch_encoder is None:
            return tokens_BSC
        if batch_BS is None:
            raise ValueError("this network has a batch encoder: forward needs batch_BS, the batch code of each cell")
        return tokens_BSC + self.batch_encoder(batch_BS)

    def run_backbone(self, tokens_BSC: Tensor, padding_BS: Tensor | None = None) -> Hidden:
        """The backbone over the cells, with the batch token before and the confidence token after them."""
        num_sets, num_cells = tokens_BSC.shape[:2]
        before = [] if self.batch_token is None else [self.batch_token.expand(num_sets, -1, -1)]
        after = (
            [] if self.confidence_token is None else [self.confidence_token.confidence_token.expand(num_sets, -1, -1)]
        )
        padding_BT = None
        if padding_BS is not None:
            padding_BT = F.pad(padding_BS, (len(before), len(after)), value=False)
        tokens_BTC = torch.cat([*before, tokens_BSC, *after], dim=1) if before or after else tokens_BSC
        plan = plan_attention(
            self.config.attention,
            tokens_BTC.shape[1],
            own_token_only=self.config.mask_attn,
            padding_BT=padding_BT,
            device=tokens_BTC.device,
        )
        hidden_BTC = self.transformer_backbone(tokens_BTC, plan)
        return Hidden(
            hidden_BTC[:, len(before) : len(before) + num_cells],
            hidden_BTC[:, 0] if before else None,
            hidden_BTC[:, -1] if after else None,
        )

    def run_head(self, cells_BSC: Tensor, control_BSG: Tensor, basal_BSC: Tensor) -> Tensor:
        """Main output `[B,S,G]` from the cells after the backbone, their controls and the controls' encoding."""
        config = self.config
        if not config.predict_residual:
            output_BSG = self.project_out(cells_BSC)
        elif config.output_space == "all":
            output_BSG = self.project_out(cells_BSC) + control_BSG
            if self.final_down_then_up is not None:
                output_BSG = self.final_down_then_up(output_BSG)
        else:
            output_BSG = self.project_out(cells_BSC + basal_BSC)
        return torch.relu(output_BSG) if config.output_is_genes else output_BSG

    def confidence(self, hidden: Hidden) -> Tensor | None:
        """Predicted loss of each set `[B]`, None without a confidence token."""
        if self.confidence_token is None or hidden.confidence_token_BC is None:
            return None
        return self.confidence_token(hidden.confidence_token_BC)

    def batch_logits(self, hidden: Hidden) -> Tensor | None:
        """Batch code logits of each set `[B,K]`, None without a batch token."""
        if self.batch_classifier is None or hidden.batch_token_BC is None:
            return None
        return self.batch_classifier(hidden.batch_token_BC)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw every parameter anew from `generator`: linear layers uniform within ±1/√inputs, tokens and batch
        embeddings standard normal, norms one, the backbone as its own `reset` says."""
        backbone = set(self.transformer_backbone.modules())
        for module in self.modules():
            if module in backbone:
                continue
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.batch_token is not None:
            nn.init.normal_(self.batch_token, generator=generator)
        if self.confidence_token is not None:
            nn.init.normal_(self.confidence_token.confidence_token, generator=generator)
        self.transformer_backbone.reset(generator)
