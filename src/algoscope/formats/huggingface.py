"""Export to Hugging Face folders, which `AutoModelForCausalLM.from_pretrained` loads.

Two architectures: GPT-2 (LayerNorm, additive position embeddings) and Llama (RMSNorm, rotary positions, a gated
feed-forward). The tables of names are also used by `subjects.huggingface`, which imports.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import SubjectError
from algoscope.formats.transformerlens import position_table
from algoscope.networks.transformer import Transformer

GPT2_PARTS = {
    "ln_1": "ln1", "attn.c_proj": "attn.o", "ln_2": "ln2", "mlp.c_fc": "mlp.w_in", "mlp.c_proj": "mlp.w_out",
}  # fmt: skip
LLAMA_PARTS = {
    "input_layernorm": "ln1", "post_attention_layernorm": "ln2", "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v", "self_attn.o_proj": "attn.o",
    "self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm", "mlp.gate_proj": "mlp.w_in",
    "mlp.up_proj": "mlp.w_linear", "mlp.down_proj": "mlp.w_out",
}  # fmt: skip
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "quick_gelu": "quick_gelu", "tanh": "tanh",
    "relu_squared": "relu2", "leaky_relu": "leaky_relu",
}  # fmt: skip
"""Ours, and the library's names."""
DESCRIBED = frozenset({
    "d_vocab", "d_vocab_out", "n_ctx", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "act_fn",
    "gated_mlp", "rank", "normalization_type", "norm_bias", "eps", "positions", "n_ids", "rotary_base", "rotary_dim",
    "rotary_frequencies", "rotary_magnitude", "causal", "windows", "parallel", "attn_bias", "attn_out_bias", "qk_norm",
    "mlp_bias", "tied_head", "head_bias", "attn_scale", "softmax_plus_one",
})  # fmt: skip
"""Fields of our configs that are written, or that a reason below speaks of; others must have their defaults."""


def model_to_files(model: Transformer, out: Path, facts: Mapping[str, str]) -> dict[Path, bytes | str]:
    """The files of the folder `out`: `model.safetensors` and `config.json`. `facts` go into the config.

    Missing biases are written as zeros where the class requires them; sinusoidal or absent positions are written as a
    table. Raises SubjectError, with the reason, for a model that no class supports.
    """
    cfg = model.cfg
    if cfg.normalization_type == "LN":
        _refuse("GPT-2", _not_gpt2(cfg))
        config, weights = _gpt2_config(cfg), _gpt2_weights(model)
    elif cfg.normalization_type == "RMS":
        _refuse("Llama", _not_llama(cfg))
        config, weights = _llama_config(cfg), _llama_weights(model)
    else:
        raise SubjectError("no class of Hugging Face is this model: its blocks have no norms: export --to onnx")
    config |= {
        "vocab_size": cfg.d_vocab, "tie_word_embeddings": cfg.tied_head, "bos_token_id": None, "eos_token_id": None,
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."), "algoscope": dict(facts),
    }  # fmt: skip
    if not cfg.tied_head:
        weights["lm_head.weight"] = model.W_U
    contiguous = {name: value.detach().contiguous() for name, value in weights.items()}
    written = save(contiguous, metadata={"format": "pt"})
    return {out / "model.safetensors": written, out / "config.json": json.dumps(config, indent=2)}


def _refuse(shape: str, reasons: Mapping[str, bool]) -> None:
    for reason, true in reasons.items():
        if true:
            raise SubjectError(
                f"no class of Hugging Face is this model: of the {shape} shape, but {reason}: export --to onnx, which "
                "takes every model"
            )


def _neither(cfg: ModelConfig) -> dict[str, bool]:
    """Reasons that exclude both architectures, and whether each applies."""
    others = {
        f"{name} is {getattr(cfg, name)}": getattr(cfg, name) != described.default
        for name, described in ModelConfig.model_fields.items()
        if name not in DESCRIBED and not name.startswith("init_")
    }
    return others | {
        "it has no causal mask": not cfg.causal,
        "it has no feed-forward": cfg.d_mlp is None,
        f"it has {cfg.n_logits} logits for {cfg.d_vocab} tokens": cfg.n_logits != cfg.d_vocab,
        "its unembedding has a bias": cfg.head_bias,
        "its blocks are parallel": cfg.parallel,
        "its softmax has one added to the denominator": cfg.softmax_plus_one,
        "its queries and keys are normed": cfg.qk_norm,
        "its blocks have sliding windows": cfg.windows is not None,
    }


def _not_gpt2(cfg: ModelConfig) -> dict[str, bool]:
    return _neither(cfg) | {
        f"its positions are {cfg.positions}": cfg.positions in ("rotary", "alibi"),
        "its feed-forward is gated": cfg.gated_mlp,
        "its heads share keys and values": cfg.kv_heads != cfg.n_heads,
        "its heads do not divide d_model": cfg.n_heads * cfg.head_size != cfg.d_model,
        f"its scores are multiplied by {cfg.attn_scale}": cfg.attn_scale not in (None, 1.0),
    }


def _not_llama(cfg: ModelConfig) -> dict[str, bool]:
    regular = cfg.rotary_frequencies is None and cfg.rotary_magnitude == 1.0 and cfg.rotary_size == cfg.head_size
    return _neither(cfg) | {
        f"its positions are {cfg.positions}": cfg.positions != "rotary",
        "its rotary positions rotate a part of each head, or have custom frequencies": not regular,
        "its feed-forward is not gated": not cfg.gated_mlp,
        f"its scores are multiplied by {cfg.attn_scale}": cfg.attn_scale is not None,
    }


# ---------------------------------------------------------------------- GPT-2


def _gpt2_config(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": cfg.n_ctx, "n_embd": cfg.d_model,
        "n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_inner": cfg.d_mlp,
        "activation_function": ACTIVATIONS[cfg.act_fn], "layer_norm_epsilon": cfg.eps,
        "scale_attn_weights": cfg.attn_scale is None, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    }  # fmt: skip


def _gpt2_weights(model: Transformer) -> dict[str, Tensor]:
    """GPT-2 has matrices [in, out], and one joint matrix for queries, keys and values."""
    ours, positions = model.state_dict(), position_table(model)
    assert positions is not None
    weights = {"transformer.wte.weight": ours["embed.weight"], "transformer.wpe.weight": positions}
    for layer in range(model.cfg.n_layers):
        here, there = f"blocks.{layer}", f"transformer.h.{layer}"
        for theirs, part in {**GPT2_PARTS, **{f"attn.{x}": f"attn.{x}" for x in "qkv"}}.items():
            matrix = ours[f"{here}.{part}.weight"]
            weights[f"{there}.{theirs}.weight"] = matrix.T if matrix.ndim == 2 else matrix
            weights[f"{there}.{theirs}.bias"] = ours.get(f"{here}.{part}.bias", matrix.new_zeros(len(matrix)))
        for kind in ("weight", "bias"):
            joined = torch.cat([weights.pop(f"{there}.attn.{x}.{kind}") for x in "qkv"], dim=-1)
            weights[f"{there}.attn.c_attn.{kind}"] = joined
    final = ours["ln_final.weight"]
    bias = ours.get("ln_final.bias", final.new_zeros(len(final)))
    return weights | {"transformer.ln_f.weight": final, "transformer.ln_f.bias": bias}


# ---------------------------------------------------------------------- Llama


def _llama_config(cfg: ModelConfig) -> dict[str, Any]:
    rope = {"rope_theta": cfg.rotary_base}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": cfg.n_ctx,
        "hidden_size": cfg.d_model, "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads, "head_dim": cfg.head_size, "intermediate_size": cfg.d_mlp,
        "hidden_act": ACTIVATIONS[cfg.act_fn], "rms_norm_eps": cfg.eps, "attention_bias": _attention_bias(cfg),
        "mlp_bias": cfg.mlp_bias, **rope, "rope_parameters": {"rope_type": "default", **rope},
    }  # fmt: skip


def _attention_bias(cfg: ModelConfig) -> bool:
    return cfg.attn_bias or bool(cfg.attn_out_bias)


def _llama_weights(model: Transformer) -> dict[str, Tensor]:
    ours = model.state_dict()
    weights = {"model.embed_tokens.weight": ours["embed.weight"], "model.norm.weight": ours["ln_final.weight"]}
    for layer in range(model.cfg.n_layers):
        for theirs, part in LLAMA_PARTS.items():
            for kind in ("weight", "bias"):
                if (name := f"blocks.{layer}.{part}.{kind}") in ours:
                    weights[f"model.layers.{layer}.{theirs}.{kind}"] = ours[name]
        if _attention_bias(model.cfg):
            for letter in "qkvo":
                matrix = ours[f"blocks.{layer}.attn.{letter}.weight"]
                name = f"model.layers.{layer}.self_attn.{letter}_proj.bias"
                weights.setdefault(name, matrix.new_zeros(len(matrix)))
    return weights
