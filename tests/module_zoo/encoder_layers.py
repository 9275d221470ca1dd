"""nn.TransformerEncoderLayer under a causal mask: norm first or last, a sinusoidal buffer `pe`, sqrt(d_model) times the
embedding; in nn.TransformerEncoder or in a list, batch first or not.
"""

import math

import torch
from torch import Tensor, nn

from ._random import randomised


class PositionalEncoding(nn.Module):
    pe: Tensor

    def __init__(self, d_model: int, max_len: int, batch_first: bool) -> None:
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.batch_first = batch_first
        self.register_buffer("pe", pe[None] if batch_first else pe[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.pe[:, : x.shape[1]] if self.batch_first else self.pe[: x.shape[0]])


class TransformerModel(nn.Module):
    def __init__(
        self,
        ntoken: int,
        max_len: int,
        d_model: int,
        nhead: int,
        nlayers: int,
        norm_first: bool,
        batch_first: bool,
        stacked: bool,
        activation: str,
        final_norm: bool,
    ) -> None:
        super().__init__()
        self.d_model, self.batch_first, self.stacked = d_model, batch_first, stacked
        self.encoder = nn.Embedding(ntoken, d_model)
        self.pos_encoder = PositionalEncoding(d_model, max_len, batch_first)
        kind = {"activation": activation, "norm_first": norm_first, "batch_first": batch_first}
        layers = [nn.TransformerEncoderLayer(d_model, nhead, 2 * d_model, 0.1, **kind) for _ in range(nlayers)]
        norm = nn.LayerNorm(d_model) if final_norm else None
        if stacked:
            self.transformer_encoder = nn.TransformerEncoder(layers[0], nlayers, norm, enable_nested_tensor=False)
        else:
            self.layers, self.norm = nn.ModuleList(layers), norm
        self.decoder = nn.Linear(d_model, ntoken)

    def forward(self, src: Tensor) -> Tensor:
        x = self.encoder(src if self.batch_first else src.T) * math.sqrt(self.d_model)
        x = self.pos_encoder(x)
        mask = nn.Transformer.generate_square_subsequent_mask(src.shape[1], dtype=x.dtype)
        if self.stacked:
            x = self.transformer_encoder(x, mask=mask, is_causal=True)
        else:
            for layer in self.layers:
                x = layer(x, src_mask=mask, is_causal=True)
            x = x if self.norm is None else self.norm(x)
        logits = self.decoder(x)
        return logits if self.batch_first else logits.transpose(0, 1)


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    norm_first: bool = False,
    batch_first: bool = True,
    stacked: bool = True,
    activation: str = "relu",
    final_norm: bool = False,
    seed: int = 0,
) -> nn.Module:
    options = norm_first, batch_first, stacked, activation, final_norm
    return randomised(lambda: TransformerModel(d_vocab, n_ctx, d_model, n_heads, n_layers, *options), seed)
