"""TransformerLens: conversion of configs in both directions, and export to files that its models load.

Source: transformer-lens 3.9.0, `HookedTransformerConfig` and `TransformerBridgeConfig`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, SubjectError
from algoscope.formats.config_inference import StatedConfig
from algoscope.formats.layouts import weights_to_layout
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer

NAMINGS = {"legacy": "transformerlens", "current": "transformerlens-current"}
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
    "swish": "silu", "relu2": "relu_squared",
}  # fmt: skip
NORMS = {"LN": "LN", "LNPre": "LN", "RMS": "RMS", "RMSPre": "RMS", None: None}
POSITIONS = {"standard": "learned", "rotary": "rotary", "alibi": "alibi"}
KNOWN: dict[str, Mapping[Any, str | None]] = {
    "act_fn": ACTIVATIONS,
    "normalization_type": NORMS,
    "positional_embedding_type": POSITIONS,
    "attention_dir": {"causal": "", "bidirectional": ""},
}
CAPS = ("attn_scores_soft_cap", "output_logits_soft_cap")
_ABSENT = (False, None)
UNKNOWN_TO_US = {
    "num_experts": (None,),
    "rotary_scaling_factor": (1.0, None), "rope_scaling": (None,), "clip_qkv": (None,),
} | dict.fromkeys((
    "use_local_attn", "post_embedding_ln", "rotary_adjacent_pairs", "use_normalization_before_and_after",
    "use_NTK_by_parts_rope", "use_yarn_rope", "use_dynamic_ntk_rope", "scale_attn_by_inverse_layer_idx",
    "use_attention_sinks", "use_logn_attn", "scale_embedding", "rmsnorm_uses_offset", "load_in_4bit",
    "quantization_method", "relative_attention_max_distance", "relative_attention_num_buckets", "per_layer_head_dim",
    "per_layer_num_key_value_heads", "is_audio_model", "is_visual_model", "is_multimodal", "is_stateful",
), _ABSENT)  # fmt: skip
"""Fields of its config that our model does not support, with the values at which they have no effect."""
READ = frozenset({
    "d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_mlp", "d_vocab", "d_vocab_out", "n_key_value_heads",
    "attn_only", "gated_mlp", "eps", "use_qk_norm", "use_attn_scale", "attn_scale", "parallel_attn_mlp", "rotary_dim",
    "rotary_base", "final_rms", "uses_rms_norm", "attn_scores_soft_cap", "output_logits_soft_cap",
})  # fmt: skip
WITHOUT_EFFECT = re.compile(
    r"device|n_devices|dtype|model_name|use_(attn_result|split_qkv_input|attn_in|hook_.*)|default_.*|tokenizer_.*|seed|"
    r"(from_)?checkpoint.*|init.*|n_params|ungroup_.*|(original_)?architecture|layer_norm_folding|trust_remote_code|"
    r"decoder_start_token_id|train_seq_length|NTK_.*|yarn_.*|window_size|attn_types|experts_per_token|norm_topk_prob|"
    r"attn_implementation|rotary_base_local|tie_word_embeddings|(vision|mm)_.*"
)
"""Its fields that change no logits, or only those of models that are refused above."""


def is_config(plain: Any) -> bool:
    """Whether a value is a config of TransformerLens as plain JSON values."""
    return isinstance(plain, Mapping) and {"d_model", "n_layers", "n_ctx"} <= set(plain)


def lens_config_to_fields(plain: Mapping[str, Any], by: str) -> StatedConfig:
    """Our config fields that a TransformerLens config determines. Raises CheckpointError for unsupported models."""
    for name, harmless in UNKNOWN_TO_US.items():
        if plain.get(name, harmless[0]) not in harmless:
            raise CheckpointError(f"{by} has {name} {plain[name]}, which algoscope does not support")
    for name in ("final_rms", "uses_rms_norm"):
        if plain.get(name) and NORMS.get(plain.get("normalization_type", "LN")) != "RMS":
            norm = plain.get("normalization_type", "LN")
            raise CheckpointError(
                f"{by} has {name} {plain[name]}, but normalization_type {norm}: norms are of one kind"
            )
    for name, known in KNOWN.items():
        if name in plain and plain[name] not in known and not (name == "act_fn" and plain.get("attn_only")):
            raise CheckpointError(f"{by} has {name} {plain[name]!r}; known: {', '.join(map(str, known))}")
    fields: dict[str, Any] = {name: plain[name] for name in ("d_model", "n_layers", "n_ctx", "eps") if name in plain}
    if plain.get("act_fn") in ACTIVATIONS:
        fields["act_fn"] = ACTIVATIONS[plain["act_fn"]]
    if "normalization_type" in plain:
        fields["normalization_type"] = NORMS[plain["normalization_type"]]
    fields["positions"] = POSITIONS[plain.get("positional_embedding_type", "standard")]
    if fields["positions"] == "rotary":
        fields["rotary_dim"] = plain.get("rotary_dim") or plain.get("d_head")
        fields["rotary_base"] = float(plain.get("rotary_base", 10_000))
    fields["causal"] = plain.get("attention_dir", "causal") == "causal"
    fields["parallel"] = bool(plain.get("parallel_attn_mlp", False))
    fields["attn_scale"] = _scale(plain)
    for cap in CAPS:
        fields[cap] = value if (value := plain.get(cap) or -1.0) > 0 else None  # not positive: none
    fields |= _shape(plain)
    unused = [key for key in plain if key not in READ | KNOWN.keys() | UNKNOWN_TO_US.keys()]
    return StatedConfig(
        fields,
        by,
        folded=str(plain.get("normalization_type")).endswith("Pre"),
        left_out=tuple(
            f"{key} {plain[key]!r} in {by}: no field of TransformerLens"
            for key in unused
            if not WITHOUT_EFFECT.fullmatch(key)
        ),
    )


def _shape(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes and parts that a config states, which are compared with those of the weights; -1 and None are open."""
    heads, size = plain.get("n_heads") or -1, plain.get("d_head") or -1
    fields: dict[str, Any] = {"qk_norm": bool(plain["use_qk_norm"])} if "use_qk_norm" in plain else {}
    if heads > 0:
        fields["n_heads"] = heads
        if size > 0:
            fields["d_head"] = None if heads * size == plain["d_model"] else size
        if "n_key_value_heads" in plain:
            fields["n_kv_heads"] = None if plain["n_key_value_heads"] in (None, heads) else plain["n_key_value_heads"]
    if (tokens := plain.get("d_vocab") or -1) > 0:
        fields["d_vocab"] = tokens
        if (out := plain.get("d_vocab_out") or -1) > 0:
            fields["d_vocab_out"] = None if out == tokens else out
    if plain.get("attn_only"):
        fields["d_mlp"] = None
    elif plain.get("d_mlp"):
        fields |= {"d_mlp": plain["d_mlp"]}
        if "gated_mlp" in plain:
            fields["gated_mlp"] = bool(plain["gated_mlp"])
    return fields


def _scale(plain: Mapping[str, Any]) -> float | None:
    """The factor of attention scores; its config has the divisor."""
    if not plain.get("use_attn_scale", True):
        return 1.0
    divisor = plain.get("attn_scale", -1.0)
    d_head = plain.get("d_head")
    if divisor is None or divisor <= 0 or (d_head and math.isclose(divisor, math.sqrt(d_head), rel_tol=1e-6)):
        return None
    return 1 / float(divisor)


# ---------------------------------------------------------------------- writing


def model_to_files(model: Transformer, out: Path, facts: Mapping[str, str], naming: str) -> dict[Path, bytes | str]:
    """The weights as safetensors in the given `naming`, and the config as a `.json` file of the same name.

    `legacy` is for `HookedTransformer.load_state_dict(weights, strict=False)` (its buffers are not in the file),
    `current` for `TransformerBridge.boot_native(config).load_state_dict(weights)`. Missing biases are written as
    zeros, sinusoidal positions as a table. `facts` go into the file's metadata as one JSON value, since safetensors
    writes several in no fixed order.

    Raises SubjectError for a model that TransformerLens does not support.
    """
    cfg = model.cfg
    _check(model, naming)
    weights = _with_its_biases(model, naming)
    table = position_table(model)
    if table is not None:
        weights["pos_embed.weight"] = table
    weights.setdefault("unembed.weight", model.W_U.detach())
    weights["embed.weight"] = model.W_E.detach()
    sizes = {"head": cfg.n_heads, "kv_head": cfg.kv_heads, "d_head": cfg.head_size}
    written = weights_to_layout(weights, NAMINGS[naming], sizes)
    config = json.dumps(config_to_lens_config(cfg), indent=2)
    return {out: save(written, metadata={"algoscope": json.dumps(facts)}), out.with_suffix(".json"): config}


def config_to_lens_config(cfg: ModelConfig) -> dict[str, Any]:
    """Our config as arguments of `HookedTransformerConfig(**fields)`."""
    fields = {
        "n_layers": cfg.n_layers, "d_model": cfg.d_model, "n_ctx": cfg.n_ctx, "d_head": cfg.head_size,
        "n_heads": cfg.n_heads, "d_vocab": cfg.d_vocab, "d_vocab_out": cfg.n_logits, "eps": cfg.eps,
        "act_fn": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[cfg.act_fn],
        "normalization_type": cfg.normalization_type, "attn_only": cfg.d_mlp is None,
        "attention_dir": "causal" if cfg.causal else "bidirectional", "parallel_attn_mlp": cfg.parallel,
        "positional_embedding_type": cfg.positions if cfg.positions in ("rotary", "alibi") else "standard",
        "gated_mlp": cfg.gated_mlp, "use_qk_norm": cfg.qk_norm, "init_weights": False, "default_prepend_bos": False,
    }  # fmt: skip
    if cfg.d_mlp is not None:
        fields["d_mlp"] = cfg.d_mlp
    if cfg.kv_heads != cfg.n_heads:
        fields["n_key_value_heads"] = cfg.kv_heads
    if cfg.positions == "rotary":
        fields |= {"rotary_dim": cfg.rotary_size, "rotary_base": cfg.rotary_base}
    for cap in CAPS:
        if (value := getattr(cfg, cap)) is not None:
            fields[cap] = value
    if cfg.attn_scale is not None:
        fields |= {"use_attn_scale": True, "attn_scale": 1 / cfg.attn_scale}
    return fields


class _Positions(Tap):
    """Records the position embedding."""

    kinds = frozenset({"pos_embed"})

    def __init__(self) -> None:
        self.recorded: Tensor | None = None

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if kind in self.kinds:
            self.recorded = value[0]
        return value


@torch.no_grad()
def position_table(model: Transformer) -> Float[Tensor, "pos d_model"] | None:
    """The position embedding: learned, sinusoidal, or zeros; None where attention encodes positions instead (rotary,
    ALiBi).
    """
    cfg, tap = model.cfg, _Positions()
    model.embed_tokens(torch.zeros(1, cfg.n_ctx, dtype=torch.long, device=model.embed.weight.device), tap=tap)
    if tap.recorded is not None:
        return tap.recorded.clone()
    return None if cfg.positions is not None else torch.zeros(cfg.n_ctx, cfg.d_model).to(model.embed.weight)


def _with_its_biases(model: Transformer, naming: str) -> dict[str, Tensor]:
    """Our weights, with zeros for the biases that TransformerLens always has."""
    cfg = model.cfg
    weights = {name: value.detach() for name, value in model.state_dict().items()}

    def fill(name: str, size: int) -> None:
        weights.setdefault(name, model.embed.weight.new_zeros(size))

    for layer in range(cfg.n_layers):
        attn, mlp = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        for letter, heads in {"q": cfg.n_heads, "k": cfg.kv_heads, "v": cfg.kv_heads}.items():
            fill(f"{attn}.{letter}.bias", heads * cfg.head_size)
        fill(f"{attn}.o.bias", cfg.d_model)
        if cfg.gated_mlp:
            for matrix in ("w_in", "w_linear", *(["w_out"] if naming == "current" else [])):
                weights.pop(f"{mlp}.{matrix}.bias", None)  # zeros: see _check
        if cfg.d_mlp is not None and not (cfg.gated_mlp and naming == "current"):
            fill(f"{mlp}.{'w_linear' if cfg.gated_mlp else 'w_in'}.bias", cfg.d_mlp)
            fill(f"{mlp}.w_out.bias", cfg.d_model)
    fill("unembed.bias", cfg.n_logits)
    if cfg.normalization_type == "LN":
        for name in [name for name in weights if name.endswith((".ln1.weight", ".ln2.weight", "ln_final.weight"))]:
            fill(name.replace(".weight", ".bias"), cfg.d_model)
    return weights


def _check(model: Transformer, naming: str) -> None:
    """Raises SubjectError for what TransformerLens does not support, in either naming or in the current one."""
    cfg = model.cfg
    nonzero = {name: bool(value.any()) for name, value in model.state_dict().items() if name.endswith("bias")}

    def biased(*ends: str) -> bool:
        return any(value for name, value in nonzero.items() if name.endswith(ends))

    regular = cfg.rotary_frequencies is None and cfg.rotary_magnitude == 1.0
    cannot = {
        "adds one to the softmax's denominator": cfg.softmax_plus_one,
        "multiplies scores by 0": cfg.attn_scale == 0.0,
        "has sliding windows": cfg.windows is not None,
        f"has norms elsewhere than before each half of a block (norms {cfg.norms})": cfg.norms != "pre",
        "has norms in its blocks and none at the end (final_norm)": cfg.normalization_type is not None
        and not cfg.final_norm,
        "norms queries and keys of all heads together (qk_norm_over all)": cfg.qk_norm and cfg.qk_norm_over == "all",
        f"mixes its attention with ones (attn_rate {cfg.attn_rate})": cfg.attn_rate != 1,
        f"has the activation {cfg.act_fn}": cfg.d_mlp is not None and cfg.act_fn not in ACTIVATIONS.values(),
        "has rotary frequencies of its own": cfg.positions == "rotary" and not regular,
        "has ALiBi's slopes without a causal mask": cfg.positions == "alibi" and not cfg.causal,
        "has biases inside a gated feed-forward": cfg.gated_mlp and biased("w_in.bias", "w_linear.bias"),
    }
    if naming == "current":
        cannot |= {
            "has rotary positions or ALiBi: write --naming legacy": cfg.positions in ("rotary", "alibi"),
            "has a bias in its unembedding: write --naming legacy": biased("unembed.bias"),
            "norms its queries and keys: write --naming legacy": cfg.qk_norm,
            "caps its scores or logits: write --naming legacy": bool(
                cfg.attn_scores_soft_cap or cfg.output_logits_soft_cap
            ),
            "is parallel: write --naming legacy": cfg.parallel,
            "has a bias after a gated feed-forward: write --naming legacy": cfg.gated_mlp and biased("w_out.bias"),
        }
    for what, true in cannot.items():
        if true:
            way = "" if "--naming" in what else "; export --to onnx, which takes every model"
            raise SubjectError(f"TransformerLens has no such model in its {naming} naming: it {what}{way}")
