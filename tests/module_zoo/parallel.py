"""Parallel blocks: attention and feed-forward read the same normalised stream (one norm) and are added together."""

import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class ParallelBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln = nn.LayerNorm(d_model)
        self.query, self.key, self.value = (nn.Linear(d_model, d_model) for _ in range(3))
        self.out = nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 3 * d_model), nn.Linear(3 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln(x)
        q, k, v = (w(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in (self.query, self.key, self.value))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(z.transpose(1, 2).flatten(2)) + self.down(F.gelu(self.up(h)))


class ParallelModel(nn.Module):
    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.blocks = nn.ModuleList(ParallelBlock(d_model, n_heads) for _ in range(n_layers))
        self.ln_out, self.unembedding = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.ln_out(x))


def make(
    d_vocab: int = 11, n_ctx: int = 9, d_model: int = 24, n_heads: int = 4, n_layers: int = 2, seed: int = 0
) -> nn.Module:
    return randomised(lambda: ParallelModel(d_vocab, n_ctx, d_model, n_heads, n_layers), seed)
