"""Embedding tables, as PyTorch makes them."""

import torch
from torch import nn


def embedding_table(n_rows: int, d_model: int) -> nn.Embedding:
    """A table drawn from N(0, 1). On the meta device nothing is drawn: PyTorch would load its compiler for that, which
    takes seconds.
    """
    weight = torch.empty(n_rows, d_model)
    return nn.Embedding.from_pretrained(weight if weight.is_meta else nn.init.normal_(weight), freeze=False)
