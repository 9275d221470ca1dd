"""to_qkv fused and to_out, norm first inside nn.Sequential, blocks that are lists of two: names are mostly numbers."""

import torch
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        dots = q @ k.transpose(-1, -2) * self.scale
        later = torch.ones(dots.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        attend = dots.masked_fill(later, -torch.finfo(dots.dtype).max).softmax(dim=-1)
        return self.to_out((attend @ v).transpose(1, 2).flatten(2))


def feed_forward(dim: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, hidden_dim),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(hidden_dim, dim),
        nn.Dropout(0.1),
    )


class Transformer(nn.Module):
    def __init__(
        self, num_tokens: int, max_len: int, dim: int, heads: int, dim_head: int, depth: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len, dim))
        self.layers = nn.ModuleList(
            [nn.ModuleList([Attention(dim, heads, dim_head), feed_forward(dim, mlp_dim)]) for _ in range(depth)]
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, x: Tensor) -> Tensor:
        h = self.token_emb(x) + self.pos_embedding[:, : x.shape[1]]
        for attention, mlp in self.layers:
            h = attention(h) + h
            h = mlp(h) + h
        return self.to_logits(h)


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    d_head: int = 5,
    d_mlp: int = 40,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: Transformer(d_vocab, n_ctx, d_model, n_heads, d_head, n_layers, d_mlp), seed)
