"""Hugging Face models converted to our transformer, so that every site, edit and sweep works on them.

The library reads the folder (shards, tied weights, tokenizer); the weights are then renamed to those of our
transformer. Nothing is folded or centred: in float32 the logits equal those of `transformers` up to rounding.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, SubjectError
from algoscope.formats.huggingface import GPT2_PARTS, LLAMA_PARTS
from algoscope.networks.transformer import Transformer
from algoscope.subjects.hf_tokenizer import find_tokenizer
from algoscope.subjects.subject import Subject

Weights = Mapping[str, Tensor]
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the library's environment variables for offline mode
ROTARY = ("default", "linear", "llama3", "yarn")  # kinds whose angles do not depend on the input


def open_hf(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A causal model of a supported family, in float32. Raises SubjectError where it is missing or not supported,
    CheckpointError where its weights are damaged or incomplete.
    """
    with _quiet():
        config, offline = _find_config(name, rest)
        if config.model_type not in FAMILIES:
            raise SubjectError(
                f"{name}: the architecture {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
            )
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                rest, config=config, dtype=torch.float32, local_files_only=offline, output_loading_info=True
            )
            source, report = loaded
        except Exception as error:  # the library has no common class for the many ways a file can be damaged
            raise CheckpointError(f"{name}: its weights cannot be read: {_first_line(error)}") from error
        if report["missing_keys"]:
            raise CheckpointError(f"{name}: weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
        text = find_tokenizer(rest, config, offline)
    return Subject(name, convert(source).to(device), text=text)


def convert(source: Any) -> Transformer:
    """Our model with the weights of a `transformers` causal model; the tensors are shared, not copied.

    Raises SubjectError for an architecture, or an option of one, that is not supported.
    """
    config = source.config
    if config.model_type not in FAMILIES:
        raise SubjectError(f"the architecture {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    shape, rename = FAMILIES[config.model_type]
    cfg = ModelConfig(**shape(config), **_rotary(source))
    state = {key: value.detach() for key, value in source.state_dict().items()}
    weights = rename(cfg, state)
    if not cfg.tied_head:
        weights["unembed.weight"] = state["lm_head.weight"]
    with torch.device("meta"):
        model = Transformer(cfg)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


# ---------------------------------------------------------------------- families


def _gpt2_shape(c: PretrainedConfig) -> dict[str, Any]:
    _refuse(c, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "d_vocab": c.vocab_size, "n_ctx": c.n_positions, "d_model": c.n_embd, "n_layers": c.n_layer,
        "n_heads": c.n_head, "d_mlp": c.n_inner or 4 * c.n_embd, "act_fn": _activation(c.activation_function),
        "eps": c.layer_norm_epsilon, "attn_bias": True, "tied_head": c.tie_word_embeddings,
        "attn_scale": None if c.scale_attn_weights else 1.0,
    }  # fmt: skip


def _gpt2_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = {"embed.weight": state["transformer.wte.weight"], "pos_embed.weight": state["transformer.wpe.weight"]}
    for layer in range(cfg.n_layers):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        for old, new in GPT2_PARTS.items():
            for kind in ("weight", "bias"):
                ours[f"{here}.{new}.{kind}"] = state[f"{there}.{old}.{kind}"].movedim(
                    0, -1
                )  # its matrices are [in, out]
        for kind in ("weight", "bias"):
            joined = state[f"{there}.attn.c_attn.{kind}"].movedim(0, -1)
            for name, value in zip("qkv", joined.chunk(3), strict=True):
                ours[f"{here}.attn.{name}.{kind}"] = value
    return ours | {f"ln_final.{kind}": state[f"transformer.ln_f.{kind}"] for kind in ("weight", "bias")}


def _neox_shape(c: PretrainedConfig) -> dict[str, Any]:
    return {
        "d_vocab": c.vocab_size, "n_ctx": c.max_position_embeddings, "d_model": c.hidden_size,
        "n_layers": c.num_hidden_layers, "n_heads": c.num_attention_heads, "d_mlp": c.intermediate_size,
        "act_fn": _activation(c.hidden_act), "eps": c.layer_norm_eps, "attn_bias": c.attention_bias,
        "tied_head": c.tie_word_embeddings, "parallel": c.use_parallel_residual,
    }  # fmt: skip


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


def _llama_shape(c: PretrainedConfig) -> dict[str, Any]:
    window = getattr(c, "sliding_window", None) if getattr(c, "use_sliding_window", True) else None
    return {
        "d_vocab": c.vocab_size, "n_ctx": min(c.max_position_embeddings, window or c.max_position_embeddings),
        "d_model": c.hidden_size, "n_layers": c.num_hidden_layers, "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads, "d_head": getattr(c, "head_dim", None), "d_mlp": c.intermediate_size,
        "act_fn": _activation(c.hidden_act), "gated_mlp": True, "normalization_type": "RMS", "eps": c.rms_norm_eps,
        "attn_bias": getattr(c, "attention_bias", False), "mlp_bias": getattr(c, "mlp_bias", False),
        "tied_head": c.tie_word_embeddings,
    }  # fmt: skip


def _qwen2_shape(c: PretrainedConfig) -> dict[str, Any]:
    return _llama_shape(c) | {"attn_bias": True, "attn_out_bias": False}


def _qwen3_shape(c: PretrainedConfig) -> dict[str, Any]:
    return _llama_shape(c) | {"qk_norm": True}


def _llama_weights(cfg: ModelConfig, state: Weights) -> dict[str, Tensor]:
    ours = {"embed.weight": state["model.embed_tokens.weight"]}
    for layer in range(cfg.n_layers):
        ours |= _renamed(state, f"model.layers.{layer}", f"blocks.{layer}", LLAMA_PARTS)
    return ours | _renamed(state, "model", "", {"norm": "ln_final"})


FAMILIES: dict[str, tuple[Callable[[PretrainedConfig], dict[str, Any]], Callable[..., dict[str, Tensor]]]] = {
    "gpt2": (_gpt2_shape, _gpt2_weights),
    "gpt_neox": (_neox_shape, _neox_weights),
    "llama": (_llama_shape, _llama_weights),
    "mistral": (_llama_shape, _llama_weights),
    "qwen2": (_qwen2_shape, _llama_weights),
    "qwen3": (_qwen3_shape, _llama_weights),
}
"""By `model_type`: the shape from the config, and the weights under our names."""


def _renamed(state: Weights, there: str, here: str, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights and biases of these parts that exist."""
    return {
        f"{here}.{new}.{kind}".removeprefix("."): state[f"{there}.{old}.{kind}"]
        for old, new in parts.items()
        for kind in ("weight", "bias")
        if f"{there}.{old}.{kind}" in state
    }


def _rotary(source: Any) -> dict[str, Any]:
    """Rotary frequencies as the library computes them from the config, including scaling."""
    rope = getattr(source.config, "rope_parameters", None)
    if rope is None:
        return {}
    kind = rope.get("rope_type", "default")
    if kind not in ROTARY:
        raise SubjectError(f"rotary positions of the kind {kind!r} are not supported; supported: {', '.join(ROTARY)}")
    rotary = source.base_model.rotary_emb
    fields = {"positions": "rotary", "rotary_base": rope["rope_theta"], "rotary_dim": 2 * len(rotary.inv_freq)}
    if kind != "default":
        fields["rotary_frequencies"] = tuple(rotary.inv_freq.tolist())
        fields["rotary_magnitude"] = float(rotary.attention_scaling)
    return fields


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise SubjectError(f"the activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _refuse(config: PretrainedConfig, **needed: bool) -> None:
    for field, value in needed.items():
        if getattr(config, field) != value:
            raise SubjectError(f"{config.model_type} with {field}={getattr(config, field)} is not supported")


# ---------------------------------------------------------------------- finding


def _find_config(name: str, rest: str) -> tuple[PretrainedConfig, bool]:
    """The config, and whether it was loaded offline: from a folder or the local cache, which are tried first."""
    forbidden = any(os.environ.get(switch, "0").lower() in ("1", "true", "yes", "on") for switch in SWITCHES)
    attempts = [True] if Path(rest).exists() or rest.startswith((".", "/", "~")) or forbidden else [True, False]
    for offline in attempts:
        try:
            return AutoConfig.from_pretrained(rest, local_files_only=offline), offline
        except OSError as error:
            last: Exception = error
        except (ValueError, KeyError) as error:
            raise SubjectError(f"{name}: its config cannot be read: {_first_line(error)}") from error
    here = Path(rest).exists()
    reason = "it has no config.json" if here else "there is no such folder, and nothing in the local cache"
    raise SubjectError(f"no model at {name}: {reason}; give the folder that `save_pretrained` wrote") from last


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and warnings of the library, and restore its settings."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
