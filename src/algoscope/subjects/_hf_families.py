"""The families of Hugging Face models that become our transformer: which keys of their configs we represent, and the
names of their weights. What we do not represent is refused, never dropped in silence.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from algoscope.config import ModelConfig
from algoscope.core.errors import SubjectError
from algoscope.formats.huggingface import GPT2_PARTS, LLAMA_PARTS

Weights = Mapping[str, Tensor]
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_python": "gelu",
}  # fmt: skip
ROTARY = ("default", "linear", "llama3", "yarn")  # kinds whose angles do not depend on the input


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


def _llama_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = {"embed.weight": state["model.embed_tokens.weight"]}
    for layer in range(cfg.n_layers):
        ours |= _renamed(state, f"model.layers.{layer}", f"blocks.{layer}", LLAMA_PARTS)
    return ours | _renamed(state, "model", "", {"norm": "ln_final"})


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


_SIZES = {
    "d_vocab": "vocab_size", "n_ctx": "max_position_embeddings", "d_model": "hidden_size",
    "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "d_mlp": "intermediate_size",
    "act_fn": "hidden_act",
}  # fmt: skip
_LLAMA = _SIZES | {"n_kv_heads": "num_key_value_heads", "d_head": "head_dim", "eps": "rms_norm_eps"}
_RMS = {"gated_mlp": True, "normalization_type": "RMS", "mlp_bias": False}
_WINDOWS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
FAMILIES = {
    "gpt2": Family(
        {
            "d_vocab": "vocab_size", "n_ctx": "n_positions", "d_model": "n_embd", "n_layers": "n_layer",
            "n_heads": "n_head", "d_mlp": "n_inner", "act_fn": "activation_function", "eps": "layer_norm_epsilon",
        },
        _gpt2_weights, {"attn_bias": True}, frozenset({"scale_attn_weights"}),
    ),
    "gpt_neox": Family(
        _SIZES | {"eps": "layer_norm_eps", "attn_bias": "attention_bias", "parallel": "use_parallel_residual"},
        _neox_weights,
    ),
    "llama": Family(_LLAMA | {"attn_bias": "attention_bias", "mlp_bias": "mlp_bias"}, _llama_weights, _RMS),
    "mistral": Family(_LLAMA, _llama_weights, _RMS, frozenset({"sliding_window"})),
    "qwen2": Family(_LLAMA, _llama_weights, _RMS | {"attn_bias": True, "attn_out_bias": False}, _WINDOWS),
    "qwen3": Family(_LLAMA | {"attn_bias": "attention_bias"}, _llama_weights, _RMS | {"qk_norm": True}, _WINDOWS),
}  # fmt: skip
"""By `model_type`."""
READ = frozenset({"model_type", "tie_word_embeddings", "algoscope"})
WITHOUT_EFFECT = re.compile(
    r"_.*|.*(dropout|pdrop|version|initializer|tokenizer|loss|flash_attn|attn_implementation).*|.*token(_ids?)?|"
    r"(summary|output|classifier|unsloth|original_max_position)_.*|architectures|(torch_)?dtype|name_or_path|license|"
    r"num_labels|id2label|label2id|problem_type|task_specific_params|finetuning_task|custom_pipelines|return_dict|"
    r"use_cache|torchscript|use_bfloat16|prefix|n_ctx|n_special|predict_special_tokens|(model_)?max_length|"
    r"(max_)?seq(uence)?_length|gradient_checkpointing|chunk_size_feed_forward|pretraining_tp|reorder_and_upcast_attn|"
    r"is_decoder|is_llama_config|use_memory_efficient_attention|transformers\.js_config"
)
"""Keys of configs that change no logits in float32: they concern training, generation, or how things are computed."""
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1.0, "", [], {})
ROPE = frozenset({
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "truncate", "finetuned",
    "partial_rotary_factor",
})  # fmt: skip
"""What the library computes rotary frequencies from."""


def check_config(config: PretrainedConfig, name: str) -> Family:
    """The family of a config. Raises SubjectError, with the key and its value, for what our transformer does not
    represent: nothing that a config says is dropped in silence.
    """
    family, usual = family_of(config.model_type, name), type(config)().to_dict()
    represented = READ | family.also | set(family.fields.values())
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_parameters" in usual:  # the family has rotary positions
        represented |= {"rope_parameters", "rope_theta"}
    plain = config.to_dict() | {f"rope_parameters.{key}": value for key, value in rope.items() if key not in ROPE}
    for key, value in plain.items():
        neutral = value == usual[key] if key in usual else value in NEUTRAL and value is not True
        neutral |= key == "layer_types" and set(value or ()) == {"full_attention"}
        if not (neutral or key in represented or WITHOUT_EFFECT.fullmatch(key)):
            raise SubjectError(
                f"{name}: its config has {key}={value!r}, which algoscope does not represent: where "
                "it changes no logits, delete it from its config.json"
            )
    if (activation := getattr(config, family.fields["act_fn"])) not in ACTIVATIONS:
        raise SubjectError(
            f"{name}: the activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return family


def family_of(model_type: str | None, name: str) -> Family:
    """The family of a `model_type`. Raises SubjectError, naming `name`, for one that is not supported."""
    if model_type is None:
        raise SubjectError(f"{name}: its config has no model_type; supported: {', '.join(FAMILIES)}")
    if model_type not in FAMILIES:
        raise SubjectError(
            f"{name}: the architecture {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def windows_of(config: PretrainedConfig, name: str) -> tuple[int | None, ...] | None:
    """The sliding window of each block; None where no block has one that is shorter than the context."""
    if config.model_type not in ("mistral", "qwen2", "qwen3"):
        return None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers  # Mistral's
    if set(kinds) - {"full_attention", "sliding_attention"}:
        raise SubjectError(f"{name}: its config has layer_types={kinds!r}, which algoscope does not represent")
    window = config.sliding_window
    if window is None or window >= config.max_position_embeddings:
        return None
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else None


def _renamed(state: Weights, there: str, here: str, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights and biases of these parts that exist."""
    return {
        f"{here}.{new}.{kind}".removeprefix("."): state[f"{there}.{old}.{kind}"]
        for old, new in parts.items()
        for kind in ("weight", "bias")
        if f"{there}.{old}.{kind}" in state
    }


def rotary_fields(source: Any, name: str) -> dict[str, Any]:
    """Rotary frequencies as the library computes them from the config, including scaling."""
    rope = getattr(source.config, "rope_parameters", None)
    if rope is None:
        return {}
    kind = rope.get("rope_type", "default")
    if kind not in ROTARY:
        raise SubjectError(
            f"{name}: rotary positions of the kind {kind!r} are not supported; supported: {', '.join(ROTARY)}"
        )
    rotary, size = source.base_model.rotary_emb, 2 * len(source.base_model.rotary_emb.inv_freq)
    share = rope.get("partial_rotary_factor", 1.0)
    head = getattr(source.config, "head_dim", None) or source.config.hidden_size // source.config.num_attention_heads
    if size != 2 * math.ceil(int(head * share) / 2):
        raise SubjectError(
            f"{name}: its config has partial_rotary_factor={share}, but {source.config.model_type} of transformers "
            f"rotates {size} of the {head} entries of a head"
        )
    if size == 0:
        return {"positions": None}
    usual = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)
    fields = {
        "positions": "rotary", "rotary_base": rope["rope_theta"], "rotary_dim": size,
        "rotary_magnitude": float(rotary.attention_scaling),
    }  # fmt: skip
    if not torch.equal(rotary.inv_freq, usual):  # scaled, or an odd number of entries
        fields["rotary_frequencies"] = tuple(rotary.inv_freq.tolist())
    return fields
