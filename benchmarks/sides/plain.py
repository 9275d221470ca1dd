"""The reference network as one writes it first, without anything of ours but its weights."""

import torch
import torch.nn.functional as F
from torch import nn

from algoscope.networks.transformer import Transformer


class Plain(nn.Module):
    """17,760 parameters, plain eager PyTorch."""

    def __init__(self, ours: Transformer) -> None:
        super().__init__()
        self.tok, self.pos, self.blocks, self.norm = ours.embed, ours.pos_embed, ours.blocks, ours.ln_final
        self.register_buffer("mask", torch.ones(13, 13).tril().bool())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        n = tokens.shape[1]
        x = self.tok(tokens) + self.pos(torch.arange(n))
        for block in self.blocks:
            h = F.layer_norm(x, (32,), block.ln1.weight, block.ln1.bias)
            q, k, v = block.attn.q(h), block.attn.k(h), block.attn.v(h)
            scores = q @ k.transpose(-2, -1) / 32**0.5
            scores = scores.masked_fill(~self.mask[:n, :n], float("-inf"))
            x = x + block.attn.o(torch.softmax(scores, dim=-1) @ v)
            h = F.layer_norm(x, (32,), block.ln2.weight, block.ln2.bias)
            x = x + block.mlp.w_out(torch.relu(block.mlp.w_in(h)))
        x = F.layer_norm(x, (32,), self.norm.weight, self.norm.bias)
        return x @ self.tok.weight.T
