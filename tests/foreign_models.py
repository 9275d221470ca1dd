"""Models of other tools, small and random, and what their authors' code computes, in a few plain lines."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from algoscope.formats.model_building import ImportedModel, file_to_model
from algoscope.tasks.groups.modular import Modular

Weights = dict[str, Tensor]
P = 9
D_VOCAB = P + 2
TASK = {"p": str(P)}  # of `modular`: 11 tokens, sequences of 5
FORM = {**TASK, "form": "ab="}  # 10 tokens, sequences of 4
TINY = {"n_layers": 2, "d_model": 24, "n_ctx": 6, "d_head": 5, "n_heads": 4, "d_vocab": D_VOCAB, "seed": 0}

CLASSIC: dict[str, dict[str, Any]] = {
    "layer norm, gelu": {"normalization_type": "LN", "act_fn": "gelu", "d_mlp": 40},
    "no norm, relu, regular heads": {"normalization_type": None, "act_fn": "relu", "d_mlp": 40, "d_head": 6},
    "folded norm, attention only": {"normalization_type": "LNPre", "attn_only": True},
    "RMS, gated, shared heads, rotary": {
        "normalization_type": "RMS", "act_fn": "silu", "d_mlp": 40, "gated_mlp": True, "d_head": 6, "rotary_dim": 4,
        "positional_embedding_type": "rotary", "n_key_value_heads": 2, "use_qk_norm": True,
    },
    "folded RMS, gelu by tanh": {"normalization_type": "RMSPre", "act_fn": "gelu_new", "d_mlp": 24},
    "ALiBi, parallel": {
        "normalization_type": "LN", "act_fn": "relu", "d_mlp": 40, "positional_embedding_type": "alibi",
        "parallel_attn_mlp": True,
    },
    "no mask, fewer logits, own scale": {
        "normalization_type": None, "act_fn": "relu", "d_mlp": 40, "attention_dir": "bidirectional",
        "d_vocab_out": P, "attn_scale": 3.0,
    },
    "unscaled scores": {"normalization_type": "LN", "act_fn": "relu", "d_mlp": 30, "use_attn_scale": False},
}  # fmt: skip
SHOWN_BY_WEIGHTS = ("layer norm, gelu", "no norm, relu, regular heads", "RMS, gated, shared heads, rotary")
"""Those that are understood without their config, with `act` where it is not the usual one."""


def classic(kind: str, seed: int = 0) -> HookedTransformer:
    """A HookedTransformer with every weight and bias random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is deprecated
        model = HookedTransformer(HookedTransformerConfig(**(TINY | CLASSIC[kind])))
    draw = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=draw)
    return model.eval().requires_grad_(False)


def plain_config(model: Any) -> dict[str, Any]:
    """Its config as JSON has it."""
    kinds = (bool, int, float, str, type(None))
    return {name: value for name, value in model.cfg.to_dict().items() if type(value) in kinds}


def save_classic(model: HookedTransformer, path: Path, with_config: bool = True) -> Path:
    """Its state dictionary with all buffers, and its config beside it."""
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    if with_config:
        path.with_suffix(".json").write_text(json.dumps(plain_config(model)))
    return path


def tokens(n: int = 7, length: int = 5, d_vocab: int = D_VOCAB) -> Tensor:
    return torch.randint(d_vocab, (n, length), generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to 1e-5 of the largest logit."""
    return ours.shape == theirs.shape and float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


# ---------------------------------------------------------------------- the published grokking models


def grokking(
    p: int = P, d_model: int = 16, heads: int = 4, d_head: int = 4, d_mlp: int = 20, out: int = P, n_ctx: int = 3
) -> Weights:
    """Random weights in the layout of the release: one layer, tokens 0 to p - 1 and `=`."""
    draw = torch.Generator().manual_seed(2)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) / math.sqrt(shape[-1])

    return {
        "embed.W_E": some(d_model, p + 1), "pos_embed.W_pos": some(n_ctx, d_model),
        "blocks.0.attn.W_K": some(heads, d_head, d_model), "blocks.0.attn.W_Q": some(heads, d_head, d_model),
        "blocks.0.attn.W_V": some(heads, d_head, d_model), "blocks.0.attn.W_O": some(d_model, heads * d_head),
        "blocks.0.attn.mask": torch.tril(torch.ones(n_ctx, n_ctx)), "blocks.0.mlp.W_in": some(d_mlp, d_model),
        "blocks.0.mlp.b_in": some(d_mlp), "blocks.0.mlp.W_out": some(d_model, d_mlp),
        "blocks.0.mlp.b_out": some(d_model), "unembed.W_U": some(d_model, out),
    }  # fmt: skip


def grokking_logits(weights: Weights, tokens: Tensor, causal: bool = True) -> Tensor:
    """What the release computes, with the mask or (as the clock and pizza models) without it."""
    w = {name.removeprefix("blocks.0."): value for name, value in weights.items()}
    x = w["embed.W_E"].T[tokens] + w["pos_embed.W_pos"][: tokens.shape[1]]
    q, k, v = (torch.einsum("ihd,bpd->biph", w[f"attn.W_{letter}"], x) for letter in "QKV")
    scores = torch.einsum("biqh,biph->biqp", q, k) / math.sqrt(q.shape[-1])
    if causal:
        n = tokens.shape[1]
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    z = torch.einsum("biqp,biph->bqih", scores.softmax(-1), v).flatten(2)
    x = x + z @ w["attn.W_O"].T
    x = x + torch.relu(x @ w["mlp.W_in"].T + w["mlp.b_in"]) @ w["mlp.W_out"].T + w["mlp.b_out"]
    return x @ w["unembed.W_U"]


def all_prompts(task: Modular) -> Tensor:
    return task.at(torch.arange(task.domain_size))[:, : task.prompt_length]


# ---------------------------------------------------------------------- reading them


def read(path: Path, settings: dict | None = None, **options: object) -> ImportedModel:
    named = {"layout": None, "act": None, "causal": None, "by_answers": False, **options}
    return file_to_model(path, "modular", TASK if settings is None else settings, **named)


def how(found: ImportedModel) -> dict[str, str]:
    return {row.what: row.how for row in found.account}


def saved(weights: dict, path: Path) -> Path:
    """As safetensors or as torch.save writes it, by the ending."""
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path
