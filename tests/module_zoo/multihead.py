"""nn.MultiheadAttention with a causal mask: norm first or last, batch first or not, masked by -inf or by True."""

import torch
from torch import Tensor, nn

from ._random import randomised


class Layer(nn.Module):
    def __init__(
        self, d_model: int, nhead: int, d_ff: int, norm_first: bool, batch_first: bool, boolean_mask: bool, bias: bool
    ) -> None:
        super().__init__()
        self.norm_first, self.batch_first, self.boolean_mask = norm_first, batch_first, boolean_mask
        self.attn = nn.MultiheadAttention(d_model, nhead, dropout=0.1, bias=bias, batch_first=batch_first)
        self.fc1, self.fc2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def attend(self, x: Tensor) -> Tensor:
        n = x.shape[1 if self.batch_first else 0]
        later = torch.triu(torch.ones(n, n, dtype=torch.bool, device=x.device), diagonal=1)
        mask = later if self.boolean_mask else torch.zeros(n, n, dtype=x.dtype).masked_fill(later, float("-inf"))
        return self.attn(x, x, x, attn_mask=mask, need_weights=False)[0]

    def feed(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.feed(x))


class Decoder(nn.Module):
    def __init__(
        self, vocab: int, max_len: int, d_model: int, nhead: int, num_layers: int, batch_first: bool, **options: bool
    ) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding, self.pos_embedding = nn.Embedding(vocab, d_model), nn.Embedding(max_len, d_model)
        self.layers = nn.ModuleList(
            [Layer(d_model, nhead, 2 * d_model, batch_first=batch_first, **options) for _ in range(num_layers)]
        )
        self.final_norm = nn.LayerNorm(d_model) if options["norm_first"] else nn.Identity()
        self.fc_out = nn.Linear(d_model, vocab)

    def forward(self, src: Tensor) -> Tensor:
        x = self.embedding(src) + self.pos_embedding(torch.arange(src.shape[1], device=src.device))
        x = x if self.batch_first else x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        return self.fc_out(x if self.batch_first else x.transpose(0, 1))


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    norm_first: bool = True,
    batch_first: bool = True,
    boolean_mask: bool = True,
    bias: bool = True,
    seed: int = 0,
) -> nn.Module:
    options = {"norm_first": norm_first, "batch_first": batch_first, "boolean_mask": boolean_mask, "bias": bias}
    return randomised(lambda: Decoder(d_vocab, n_ctx, d_model, n_heads, n_layers, **options), seed)
