"""GPT-2 blocks over the tokens of a set, without position embedding; names and weight layout as in published GPT-2.

Each block: `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`, the MLP with GELU in its tanh form. Shape letters: B sets,
T tokens, C hidden size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.attention import AttentionPlan, attend, split_heads
from steval.model.config import Gpt2Config


class TransposedLinear(nn.Module):
    """`x · W + b` with `weight [in, out]`: GPT-2 keeps its matrices the other way round."""

    def __init__(self, input_dim: int, output_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(output_dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]`."""
        return F.linear(features, self.weight.T, self.bias)


class Gpt2Attention(nn.Module):
    """Self-attention with query, key and value from one product."""

    def __init__(self, config: Gpt2Config):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        self.c_attn = TransposedLinear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = TransposedLinear(config.hidden_size, config.hidden_size)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        query, key, value = (split_heads(part, self.head_dim) for part in self.c_attn(tokens_BTC).chunk(3, dim=-1))
        return self.c_proj(attend(query, key, value, plan))


class Gpt2Mlp(nn.Module):
    """Two linear maps around a GELU (tanh form)."""

    def __init__(self, config: Gpt2Config):
        super().__init__()
        self.c_fc = TransposedLinear(config.hidden_size, config.intermediate_size)
        self.c_proj = TransposedLinear(config.intermediate_size, config.hidden_size)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        return self.c_proj(F.gelu(self.c_fc(tokens_BTC), approximate="tanh"))


class Gpt2Block(nn.Module):
    """Attention and MLP, each after a norm and around a residual."""

    def __init__(self, config: Gpt2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = Gpt2Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Gpt2Mlp(config)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`."""
        tokens_BTC = tokens_BTC + self.attn(self.ln_1(tokens_BTC), plan)
        return tokens_BTC + self.mlp(self.ln_2(tokens_BTC))


class Gpt2(nn.Module):
    """The blocks and the final norm; upstream's token and position embeddings are never used and absent here."""

    def __init__(self, config: Gpt2Config):
        super().__init__()
        self.h = nn.ModuleList(Gpt2Block(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens_BTC: Tensor, plan: AttentionPlan) -> Tensor:
        """`[B,T,C]` → `[B,T,C]`, normalised."""
        for block in self.h:
            tokens_BTC = block(tokens_BTC, plan)
        return self.ln_f(tokens_BTC)

    def reset(self, generator: torch.Generator) -> None:
        """Draw all weights anew: normal with deviation 0.02 (projections back, 0.02/√2L), biases zero, norms one."""
        for name, module in self.named_modules():
            if isinstance(module, TransposedLinear):
                std = 0.02 / math.sqrt(2 * len(self.h)) if name.endswith("c_proj") else 0.02
                nn.init.normal_(module.weight, std=std, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
