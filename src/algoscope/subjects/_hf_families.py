"""The families of Hugging Face models that become our transformer: which keys of their configs we represent, and the
names of their weights.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.formats.huggingface import GPT2_PARTS, LLAMA_PARTS
from algoscope.networks.taps import precise

Weights = Mapping[str, Tensor]
NORM = re.compile(r"\b(ln\w*|[qk]_norm)\.weight$")


def _renamed(state: Weights, there: str, here: str, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights and biases of these parts that exist."""
    return {
        f"{here}.{new}.{kind}".removeprefix("."): state[f"{there}.{old}.{kind}"]
        for old, new in parts.items()
        for kind in ("weight", "bias")
        if f"{there}.{old}.{kind}" in state
    }


def _gpt2_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = {"embed.weight": state["transformer.wte.weight"], "pos_embed.weight": state["transformer.wpe.weight"]}
    for layer in range(cfg.n_layers):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        for old, new in GPT2_PARTS.items():
            for kind in ("weight", "bias"):
                value = state[f"{there}.{old}.{kind}"]
                ours[f"{here}.{new}.{kind}"] = value.movedim(0, -1)  # its matrices are [in, out]
        for kind in ("weight", "bias"):
            joined = state[f"{there}.attn.c_attn.{kind}"].movedim(0, -1)
            for name, value in zip("qkv", joined.chunk(3), strict=True):
                ours[f"{here}.attn.{name}.{kind}"] = value
    return ours | {f"ln_final.{kind}": state[f"transformer.ln_f.{kind}"] for kind in ("weight", "bias")}


def _neox_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = {"embed.weight": state["gpt_neox.embed_in.weight"]}
    parts = {
        "input_layernorm": "ln1", "attention.dense": "attn.o", "post_attention_layernorm": "ln2",
        "mlp.dense_h_to_4h": "mlp.w_in", "mlp.dense_4h_to_h": "mlp.w_out",
    }  # fmt: skip
    for layer in range(cfg.n_layers):
        there, here = f"gpt_neox.layers.{layer}", f"blocks.{layer}"
        ours |= _renamed(state, there, here, parts)
        for kind in ("weight", "bias") if cfg.attn_bias else ("weight",):
            joined = state[f"{there}.attention.query_key_value.{kind}"]  # q, k and v of the first head come first
            for name, value in zip("qkv", joined.unflatten(0, (cfg.n_heads, 3, cfg.head_size)).unbind(1), strict=True):
                ours[f"{here}.attn.{name}.{kind}"] = value.flatten(0, 1)
    return ours | _renamed(state, "gpt_neox", "", {"final_layer_norm": "ln_final"})


def _plain_weights(cfg: ModelConfig, state: Weights, parts: Mapping[str, str] = LLAMA_PARTS) -> dict[str, Tensor]:
    """Llama's names, and those of families that call the parts of a block otherwise."""
    ours = {"embed.weight": state["model.embed_tokens.weight"]}
    for layer in range(cfg.n_layers):
        ours |= _renamed(state, f"model.layers.{layer}", f"blocks.{layer}", parts)
    return ours | _renamed(state, "model", "", {"norm": "ln_final"})


def _gemma_weights(cfg: ModelConfig, state: Weights, parts: Mapping[str, str] = LLAMA_PARTS) -> dict[str, Tensor]:
    """The factor of its norms is 1 + weight."""
    ours = _plain_weights(cfg, state, parts)
    return {
        name: (1 + value.to(precise(value.dtype))).to(value.dtype) if NORM.search(name) else value
        for name, value in ours.items()
    }


def _phi3_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = _plain_weights(cfg, state)
    heads = [n * cfg.head_size for n in (cfg.n_heads, cfg.kv_heads, cfg.kv_heads)]
    for layer in range(cfg.n_layers):
        there, here = f"model.layers.{layer}", f"blocks.{layer}"
        joined = state[f"{there}.self_attn.qkv_proj.weight"].split(heads)
        ours |= {f"{here}.attn.{name}.weight": value for name, value in zip("qkv", joined, strict=True)}
        gate_and_up = state[f"{there}.mlp.gate_up_proj.weight"].chunk(2)
        for name, value in zip(("w_in", "w_linear"), gate_and_up, strict=True):
            ours[f"{here}.mlp.{name}.weight"] = value
    return ours


def _phi_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    parts = {f"self_attn.{x}_proj": f"attn.{x}" for x in "qkv"} | {
        "self_attn.dense": "attn.o", "mlp.fc1": "mlp.w_in", "mlp.fc2": "mlp.w_out", "input_layernorm": "ln1",
    }  # fmt: skip
    ours = _plain_weights(cfg, state, parts) | _renamed(state, "model", "", {"final_layernorm": "ln_final"})
    for layer in range(cfg.n_layers):  # one norm for attention and feed-forward
        ours |= _renamed(state, f"model.layers.{layer}", f"blocks.{layer}", {"input_layernorm": "ln2"})
    return ours


def _opt_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    """Its first two rows of positions are never read. A projection of the embeddings is multiplied into them."""
    there = "model.decoder"
    ours = {
        "embed.weight": state[f"{there}.embed_tokens.weight"],
        "pos_embed.weight": state[f"{there}.embed_positions.weight"][2:],
    }
    parts = {f"self_attn.{x}_proj": f"attn.{x}" for x in "qkv"} | {
        "self_attn.out_proj": "attn.o", "self_attn_layer_norm": "ln1", "fc1": "mlp.w_in", "fc2": "mlp.w_out",
        "final_layer_norm": "ln2",
    }  # fmt: skip
    for layer in range(cfg.n_layers):
        ours |= _renamed(state, f"{there}.layers.{layer}", f"blocks.{layer}", parts)
    ours |= _renamed(state, there, "", {"final_layer_norm": "ln_final"})
    if f"{there}.project_in.weight" in state:
        inwards, outwards = (state[f"{there}.project_{way}.weight"] for way in ("in", "out"))
        ours["embed.weight"] = ours["embed.weight"] @ inwards.T
        ours["unembed.weight"] = state["lm_head.weight"] @ outwards
    return _unit_norms(cfg, ours["pos_embed.weight"]) | ours


def _olmo_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = _plain_weights(cfg, state)
    return _unit_norms(cfg, ours["embed.weight"]) | ours


def _unit_norms(cfg: ModelConfig, like: Tensor) -> dict[str, Tensor]:
    """Weights and biases of norms that have none to learn."""
    blocks = [f"blocks.{layer}.{name}" for layer in range(cfg.n_layers) for name in ("ln1", "ln2")]
    norms = blocks + ["ln_final"] * cfg.final_norm
    ones, zeros = like.new_ones(cfg.d_model), like.new_zeros(cfg.d_model)
    return {f"{norm}.{kind}": value for norm in norms for kind, value in (("weight", ones), ("bias", zeros))}


# ---------------------------------------------------------------------- what configs say


def _of_gpt2(config: Any) -> dict[str, Any]:
    shape: dict[str, Any] = {} if config.n_inner else {"d_mlp": 4 * config.n_embd}
    return shape if config.scale_attn_weights else shape | {"attn_scale": 1.0}


def _of_gemma2(config: Any) -> dict[str, Any]:
    return {"attn_scale": config.query_pre_attn_scalar**-0.5}


def _of_opt(config: Any) -> dict[str, Any]:
    before = config.do_layer_norm_before
    shape: dict[str, Any] = {} if before else {"norms": "post"}
    if not before or config._remove_final_layer_norm:
        shape["final_norm"] = False
    if config.word_embed_proj_dim != config.hidden_size:
        shape["tied_head"] = False
    return shape


def _nothing_more(config: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A `model_type` of the library in terms of our transformer."""

    fields: Mapping[str, str]
    """Our fields, and the keys of its config that they are read from."""
    weights: Callable[[ModelConfig, Weights], dict[str, Tensor]]
    """Its weights under our names."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Our fields that have one value in all its models."""
    also: frozenset[str] = frozenset()
    """Other keys of its config that are read."""
    more: Callable[[Any], dict[str, Any]] = _nothing_more
    """Our fields that follow from several keys."""


_SIZES = {
    "d_vocab": "vocab_size", "n_ctx": "max_position_embeddings", "d_model": "hidden_size",
    "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "d_mlp": "intermediate_size",
    "act_fn": "hidden_act",
}  # fmt: skip
_HEADS = {"n_kv_heads": "num_key_value_heads", "d_head": "head_dim"}
_LLAMA = _SIZES | _HEADS | {"eps": "rms_norm_eps"}
_BIASED = _LLAMA | {"attn_bias": "attention_bias"}
_RMS = {"gated_mlp": True, "normalization_type": "RMS", "mlp_bias": False}
_WINDOWS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_GEMMA2 = _BIASED | {"act_fn": "hidden_activation", "output_logits_soft_cap": "final_logit_softcapping"}
_GEMMA2_PARTS = LLAMA_PARTS | {
    "post_attention_layernorm": "ln1_post", "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_post",
}  # fmt: skip
_GEMMA2_KEYS = frozenset({"sliding_window", "layer_types", "query_pre_attn_scalar", "hidden_act"})
_OLMO2_PARTS = LLAMA_PARTS | {"post_attention_layernorm": "ln1", "post_feedforward_layernorm": "ln2"}
FAMILIES = {
    "gpt2": Family(
        {
            "d_vocab": "vocab_size", "n_ctx": "n_positions", "d_model": "n_embd", "n_layers": "n_layer",
            "n_heads": "n_head", "d_mlp": "n_inner", "act_fn": "activation_function", "eps": "layer_norm_epsilon",
        },
        _gpt2_weights, {"attn_bias": True}, frozenset({"scale_attn_weights"}), _of_gpt2,
    ),
    "gpt_neox": Family(
        _SIZES | {"eps": "layer_norm_eps", "attn_bias": "attention_bias", "parallel": "use_parallel_residual"},
        _neox_weights,
    ),
    "llama": Family(_BIASED | {"mlp_bias": "mlp_bias"}, _plain_weights, _RMS),
    "mistral": Family(_LLAMA, _plain_weights, _RMS, frozenset({"sliding_window"})),
    "qwen2": Family(_LLAMA, _plain_weights, _RMS | {"attn_bias": True, "attn_out_bias": False}, _WINDOWS),
    "qwen3": Family(_BIASED, _plain_weights, _RMS | {"qk_norm": True}, _WINDOWS),
    "gemma": Family(_BIASED, _gemma_weights, _RMS, frozenset({"hidden_activation"})),
    "gemma2": Family(
        _GEMMA2 | {"attn_scores_soft_cap": "attn_logit_softcapping"}, partial(_gemma_weights, parts=_GEMMA2_PARTS),
        _RMS | {"norms": "both"}, _GEMMA2_KEYS, _of_gemma2,
    ),
    "gemma3_text": Family(
        _GEMMA2, partial(_gemma_weights, parts=_GEMMA2_PARTS), _RMS | {"norms": "both", "qk_norm": True},
        _GEMMA2_KEYS | {"sliding_window_pattern"}, _of_gemma2,
    ),
    "phi": Family(
        _SIZES | _HEADS | {"eps": "layer_norm_eps"}, _phi_weights, {"attn_bias": True, "parallel": True},
        frozenset({"partial_rotary_factor"}),
    ),
    "phi3": Family(_LLAMA, _phi3_weights, _RMS, frozenset({"sliding_window", "partial_rotary_factor"})),
    "opt": Family(
        _SIZES | {
            "d_mlp": "ffn_dim", "act_fn": "activation_function", "attn_bias": "enable_bias", "mlp_bias": "enable_bias",
        },
        _opt_weights, {},
        frozenset({"do_layer_norm_before", "word_embed_proj_dim", "layer_norm_elementwise_affine"}), _of_opt,
    ),
    "olmo": Family(
        _SIZES | _HEADS | {"attn_bias": "attention_bias"}, _olmo_weights, {"gated_mlp": True, "mlp_bias": False},
    ),
    "olmo2": Family(
        _BIASED, partial(_plain_weights, parts=_OLMO2_PARTS),
        _RMS | {"norms": "output", "qk_norm": True, "qk_norm_over": "all"},
    ),
}  # fmt: skip
"""By `model_type`."""
