"""A small adder: W_Q, W_K, W_V, W_O as nn.Linear without biases, a feed-forward in nn.Sequential, a tied head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_ctx: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_Q = nn.Linear(d_model, d_model, bias=False)
        self.W_K = nn.Linear(d_model, d_model, bias=False)
        self.W_V = nn.Linear(d_model, d_model, bias=False)
        self.W_O = nn.Linear(d_model, d_model, bias=False)
        self.register_buffer("causal", torch.ones(n_ctx, n_ctx).tril().bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (w(x).reshape(b, n, self.n_heads, -1).permute(0, 2, 1, 3) for w in (self.W_Q, self.W_K, self.W_V))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (d // self.n_heads) ** -0.5
        pattern = scores.masked_fill(~self.causal[:n, :n], -1e9).softmax(dim=-1)
        return self.W_O(torch.einsum("bhqk,bhkd->bqhd", pattern, v).flatten(2))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int, n_ctx: int) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(d_model), Attention(d_model, n_heads, n_ctx)
        self.ln2 = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class Adder(nn.Module):
    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, n_layers: int, d_ff: int) -> None:
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads, d_ff, n_ctx) for _ in range(n_layers)])
        self.ln_f = nn.LayerNorm(d_model)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token_emb(idx) + self.pos_emb.weight[: idx.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.token_emb.weight)


def make(
    d_vocab: int = 14,
    n_ctx: int = 13,
    d_model: int = 32,
    n_heads: int = 1,
    n_layers: int = 2,
    d_ff: int = 64,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: Adder(d_vocab, n_ctx, d_model, n_heads, n_layers, d_ff), seed)
