"""A head that is tied and has a bias, without a final norm before it; or untied, in a wrapper whose output is a
dictionary or a dataclass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.query, self.key, self.value))
        return self.output(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_attn, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm_mlp, self.expand, self.contract = (
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attn(x))
        return x + self.contract(torch.tanh(self.expand(self.norm_mlp(x))))


class OddHead(nn.Module):
    def __init__(
        self, vocab: int, max_len: int, dim: int, heads: int, depth: int, tied: bool, bias: bool, final_norm: bool
    ) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(vocab, dim), nn.Embedding(max_len, dim)
        self.layer = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(dim) if final_norm else None
        self.classifier = nn.Linear(dim, vocab, bias=bias)
        if tied:
            self.classifier.weight = self.word_embeddings.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.word_embeddings(tokens) + self.position_embeddings.weight[None, : tokens.shape[1]]
        for layer in self.layer:
            x = layer(x)
        return self.classifier(x if self.norm_out is None else self.norm_out(x))


@dataclass
class Output:
    logits: Tensor
    hidden: None = None


class Wrapper(nn.Module):
    """Holds the model under another name and packs its logits."""

    def __init__(self, net: nn.Module, output: str) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, tokens: Tensor) -> object:
        logits = self.net(tokens)
        return {"loss": None, "logits": logits} if self.output == "dict" else Output(logits)


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    tied: bool = True,
    bias: bool = True,
    final_norm: bool = False,
    output: str = "tensor",
    seed: int = 0,
) -> nn.Module:
    def module() -> nn.Module:
        model = OddHead(d_vocab, n_ctx, d_model, n_heads, n_layers, tied, bias, final_norm)
        return model if output == "tensor" else Wrapper(model, output)

    return randomised(module, seed)
