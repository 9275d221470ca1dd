"""Attention only: blocks named `attn_blocks.N`, no feed-forward; with norms or without."""

import torch
from torch import Tensor, nn

from ._random import randomised


class AttentionBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, norms: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model) if norms else None
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.norm is None else self.norm(x)
        q, k, v = (w(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        return x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class AttentionOnly(nn.Module):
    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, n_layers: int, norms: bool) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.attn_blocks = nn.ModuleList(AttentionBlock(d_model, n_heads, norms) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model) if norms else None
        self.unembed = nn.Linear(d_model, d_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed.weight[: tokens.shape[1]]
        for block in self.attn_blocks:
            x = block(x)
        return self.unembed(x if self.norm is None else self.norm(x))


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    norms: bool = True,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: AttentionOnly(d_vocab, n_ctx, d_model, n_heads, n_layers, norms), seed)
