"""Random models of every family of options, under the task of two-digit addition: nothing is known of them."""

import torch

from algoscope.config import ModelConfig
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition

TASK = Addition(n_digits=2)
FAMILIES = {
    "reference": {},
    "grouped": {"n_heads": 4, "n_kv_heads": 2, "positions": "rotary", "normalization_type": "RMS", "gated_mlp": True},
    "bare": {"normalization_type": None, "d_mlp": None, "positions": "sinusoidal", "n_heads": 2},
    "alibi": {"positions": "alibi", "softmax_plus_one": True, "tied_head": False, "n_layers": 3},
    "not causal": {"causal": False},
    "parallel": {"parallel": True, "positions": "rotary", "rotary_dim": 4, "attn_bias": True, "tied_head": False},
    "normed heads": {
        "qk_norm": True, "positions": "rotary", "normalization_type": "RMS", "tied_head": False, "head_bias": True,
        "attn_bias": True, "attn_out_bias": False,
    },
}  # fmt: skip


def subject(family: str = "reference", seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> Subject:
    shape = {"d_model": 16, "d_mlp": 24, "n_heads": 2} | FAMILIES[family] | sizes
    cfg = ModelConfig(d_vocab=14, n_ctx=10, init_embed_std=1.0, **shape)
    return Subject(family, build(cfg, seed).to(dtype), TASK)
