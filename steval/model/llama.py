"""Llama blocks over the tokens of a set, after "Llama 2" (arXiv:2307.09288); names as in its published weights.

RMSNorm: `x / sqrt(mean(x²) + eps) · w`. SwiGLU: `down(silu(gate(x)) · up(x))`. No biases. Rotary embedding in the
`causal-rope` regime alone. Shape letters: B sets, T tokens, C hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.attention import AttentionPlan, attend, rotary_tables, rotate, split_heads
from steval.model.config import LlamaConfig


class LlamaAttention(nn.Module):
    """Self-attention; the heads' joint size need not be C, and key/value heads may be fewer."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        query_dim = config.num_heads * config.head_dim
        key_dim = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
        self.o_proj = nn.Linear(query_dim, config.hidden_size, bias=False)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        query = split_heads(self.q_proj(tokens_BTC), self.head_dim)
        key = split_heads(self.k_proj(tokens_BTC), self.head_dim)
        value = split_heads(self.v_proj(tokens_BTC), self.head_dim)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return self.o_proj(attend(query, key, value, plan))


class LlamaMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        return self.down_proj(F.silu(self.gate_proj(tokens_BTC)) * self.up_proj(tokens_BTC))


class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each after a norm and around a residual."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        tokens_BTC = tokens_BTC + self.self_attn(self.input_layernorm(tokens_BTC), plan, rotary)
        return tokens_BTC + self.mlp(self.post_attention_layernorm(tokens_BTC))


class Llama(nn.Module):
    """The blocks and the final norm; the vocabulary embedding of upstream is never used and absent here."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`, normalised."""
        rotary = None
        if plan.positions_BT is not None:
            rotary = rotary_tables(plan.positions_BT, self.head_dim, self.rope_theta, tokens_BTC.dtype)
        for layer in self.layers:
            tokens_BTC = layer(tokens_BTC, plan, rotary)
        return self.norm(tokens_BTC)

    def reset(self, generator: torch.Generator) -> None:
        """Draw all weights anew: normal with deviation 0.02, norms one."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
