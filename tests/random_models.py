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
    "post norms": {"norms": "post", "final_norm": False, "attn_rate": 0.5, "act_fn": "tanh", "head_bias": True},
    "output norms": {
        "norms": "output", "normalization_type": "RMS", "qk_norm": True, "qk_norm_over": "all", "positions": "rotary",
        "n_heads": 4, "n_kv_heads": 2, "attn_bias": True,
    },
    "both norms": {
        "norms": "both", "normalization_type": "RMS", "gated_mlp": True, "act_fn": "gelu_tanh", "embed_scale": 4.0,
        "attn_scores_soft_cap": 1.0, "output_logits_soft_cap": 3.0, "positions": "rotary", "windows": (5, None),
        "window_rotary_frequencies": (0.9, 0.07, 0.01),
    },
}  # fmt: skip

SUMS = {family: fields for family, fields in FAMILIES.items() if fields.get("norms") != "post"}
"""Those whose residual stream is the sum of what heads and MLPs add to it."""


def subject(family: str = "reference", seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> Subject:
    shape = {"d_model": 16, "d_mlp": 24, "n_heads": 2} | FAMILIES[family] | sizes
    shape |= fitting(shape)
    cfg = ModelConfig(d_vocab=14, n_ctx=10, init_embed_std=1.0, **shape)
    return Subject(family, build(cfg, seed).to(dtype), TASK)


def fitting(shape: dict) -> dict:
    """Windows for as many blocks, and frequencies for as many pairs, as a model of this shape has."""
    n_layers, d_head = shape.get("n_layers", 2), shape.get("d_head") or shape["d_model"] // shape["n_heads"]
    fits = {}
    if "windows" in shape:
        fits["windows"] = tuple(shape["windows"][layer % 2] for layer in range(n_layers))
    if "window_rotary_frequencies" in shape:
        fits["window_rotary_frequencies"] = tuple(0.9 * 0.3**pair for pair in range(d_head // 2))
    return fits
