"""a config of another tool -> fields of ours: what nanoGPT's `model_args`, a dictionary of sizes or the authors of a
published model wrote down. Configs of TransformerLens, which are complete, are read by `formats.transformerlens`.

Each key is one of four: a field of ours under another name, something that has no effect on logits (training, data),
something our model cannot be (refused, unless at a value without effect), or unknown, and then it is named.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from algoscope.core.errors import CheckpointError
from algoscope.formats.config_inference import StatedConfig
from algoscope.formats.transformerlens import is_config as is_lens_config
from algoscope.formats.transformerlens import lens_config_to_fields

_NAMES: Mapping[str, str] = {
    "n_layers": "n_layers n_layer num_layers num_hidden_layers n_blocks num_blocks depth nlayers layers",
    "n_heads": "n_heads n_head num_heads nhead heads num_attention_heads nheads",
    "n_kv_heads": "n_kv_heads n_kv_head num_key_value_heads num_kv_heads n_key_value_heads",
    "d_model": "d_model n_embd emb_dim embed_dim hidden_size dim embedding_dim embedding_size model_dim n_embed "
    "d_embed width ninp",
    "n_ctx": "n_ctx block_size context_length max_seq_len max_len max_position_embeddings seq_len n_positions ctx_len "
    "context_size max_length max_seq_length sequence_length",
    "d_vocab": "d_vocab vocab_size n_vocab num_tokens ntoken n_tokens vocabulary_size",
    "d_vocab_out": "d_vocab_out n_classes num_classes n_out output_size",
    "d_mlp": "d_mlp d_ff mlp_dim intermediate_size ffn_dim dim_feedforward n_inner ff_dim nhid d_hidden",
    "d_head": "d_head head_dim dim_head head_size d_k",
    "act_fn": "act_fn activation activation_function hidden_act act act_type nonlinearity",
    "eps": "eps layer_norm_eps layer_norm_epsilon rms_norm_eps norm_eps ln_eps layernorm_epsilon",
    "rotary_base": "rotary_base rope_theta rope_base rotary_emb_base",
    "rotary_dim": "rotary_dim",
    "attn_rate": "attn_rate attn_coeff attention_rate attention_coeff attn_coef",
    "attn_scale": "attn_scale softmax_scale",
    "causal": "causal is_causal",
    "parallel": "parallel use_parallel_residual parallel_residual parallel_attn_mlp",
    "tied_head": "tied_head tie_weights weight_tying tie_word_embeddings tied tied_embeddings tie_embeddings",
    "qk_norm": "qk_norm use_qk_norm",
    "gated_mlp": "gated_mlp gated",
    "normalization_type": "normalization_type norm_type normalization",
    "norms": "norms norm_position",
    "positions": "positions pos_type pos_encoding position_embedding_type positional_encoding pos_emb_type "
    "positional_embedding_type position_encoding",
    "embed_scale": "embed_scale embedding_scale",
    "attn_scores_soft_cap": "attn_scores_soft_cap attn_logit_softcapping",
    "output_logits_soft_cap": "output_logits_soft_cap final_logit_softcapping logit_softcap",
}
FIELD_OF: Mapping[str, str] = {key: field for field, keys in _NAMES.items() for key in keys.split()}
"""Our field for each key of others."""
VALUES: Mapping[str, Mapping[str, Any]] = {
    "act_fn": {
        "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh", "silu": "silu",
        "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu", "tanh": "tanh", "quick_gelu": "quick_gelu",
        "relu2": "relu_squared", "relu_squared": "relu_squared", "squared_relu": "relu_squared",
        "leaky_relu": "leaky_relu", "leakyrelu": "leaky_relu",
    },
    "normalization_type": {
        "ln": "LN", "layernorm": "LN", "layer_norm": "LN", "layer": "LN", "rms": "RMS", "rmsnorm": "RMS",
        "rms_norm": "RMS", "none": None, "no": None, "false": None,
    },
    "norms": {
        "pre": "pre", "post": "post", "first": "pre", "last": "post", "prenorm": "pre", "postnorm": "post",
        "output": "output", "both": "both",
    },
    "positions": {
        "learned": "learned", "absolute": "learned", "standard": "learned", "learnable": "learned", "rope": "rotary",
        "rotary": "rotary", "alibi": "alibi", "sinusoidal": "sinusoidal", "sin": "sinusoidal", "none": None,
        "nope": None,
    },
}  # fmt: skip
"""Values in words, in lower case."""
FLAGS: Mapping[str, tuple[str, Any, Any]] = {
    "norm_first": ("norms", "pre", "post"),
    "pre_norm": ("norms", "pre", "post"),
    "prenorm": ("norms", "pre", "post"),
    "post_norm": ("norms", "post", "pre"),
    "use_rope": ("positions", "rotary", ...),
    "rotary": ("positions", "rotary", ...),
    "rope": ("positions", "rotary", ...),
    "alibi": ("positions", "alibi", ...),
    "use_alibi": ("positions", "alibi", ...),
    "use_ln": ("normalization_type", "LN", None),
    "use_layernorm": ("normalization_type", "LN", None),
    "layer_norm": ("normalization_type", "LN", None),
    "layernorm": ("normalization_type", "LN", None),
    "attn_only": ("d_mlp", None, ...),
}
"""Keys that say yes or no: the field, its value at yes and at no; `...`: nothing is said."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    (
        "n_experts", "num_experts", "moe", "num_local_experts", "sliding_window", "window_size", "rope_scaling",
        "relative_attention_num_buckets", "relative_position", "relative_pos", "use_local_attn", "embedding_norm",
        "embed_norm", "use_attention_sinks", "clip_qkv", "cross_attention", "add_cross_attention", "memory_size",
        "n_memory", "conv", "use_conv", "logit_scale", "residual_scale", "scale_attn_by_inverse_layer_idx",
        "scale_embedding", "sparse_attention", "local_window", "attention_window", "n_registers", "quantization_config",
        "logit_multiplier", "residual_multiplier", "attention_multiplier", "post_embedding_ln",
    ),
    (None, False, 0, 1, 1.0, "none", ()),
)  # fmt: skip
"""Keys that our model cannot represent, with the values that say it has no such part."""
SOFTMAX = {
    "attn_type": ("softmax", "causal", "full", "self", "mha", "standard", "multihead", "gqa", "default", None),
    "attention_type": ("softmax", "causal", "full", "self", "mha", "standard", "multihead", "gqa", "default", None),
    "attn_fn": ("softmax", None),
    "attention_fn": ("softmax", None),
}
"""Keys that name the kind of attention, with those that are ours."""
SHOWN_BY_WEIGHTS = re.compile(
    r"(qkv_|use_|attn_|attention_|mlp_|ffn_|head_|lm_head_|linear_)?bias|no_bias|qkv_bias|add_bias.*|C|p|mod|modulus"
)
"""Keys about what the weights themselves show."""
WITHOUT_EFFECT = re.compile(
    r"(.*_)?(drop(out)?|pdrop)(_.*)?|(learning_rate|lr|min_lr|max_lr)(_.*)?|.*decay.*|betas?|beta[12]|.*momentum|"
    r"(.*_)?(batch(_size)?|epochs?|steps?|iters?|iter_num)(_.*)?|n_epochs|num_epochs|max_iters|.*warmup.*|"
    r"(.*_)?optim(izer)?(_.*)?|sched.*|seed.*|.*_seed|device.*|.*dtype|compile|amp|precision|wandb.*|log_.*|eval_.*|"
    r"save_.*|out_dir|dataset.*|data_.*|train_.*|test_.*|val_.*|best_.*|.*loss.*|grad_.*|clip.*grad.*|init_?.*|"
    r"initializer_range|run_?(name|id)?|name|model_?(name|type)?|exp.*|project|num_workers|patience|frac(tion)?|"
    r"frac_train|func?s?|fn_name|task|version|architectures?|transformers_version|torch_dtype|use_cache|"
    r"(bos|eos|pad|sep|cls|unk)_token_id|_name_or_path|gradient_.*|flash.*|use_flash.*|checkpoint.*|notes?|comment|"
    r"tokenizer.*|block_type|is_decoder|layer_types|task_specific_params|id2label|label2id"
)
"""Keys about training, data and files."""


def is_config(plain: Any) -> bool:
    """Whether a value is a config: a mapping with at least one size of a transformer."""
    sizes = {"n_layers", "n_heads", "d_model", "n_ctx", "d_vocab"}
    return isinstance(plain, Mapping) and any(FIELD_OF.get(str(key)) in sizes for key in plain)


def config_to_fields(plain: Mapping[str, Any], by: str) -> StatedConfig:
    """Our config fields that a config of another tool determines; what it says besides is in `left_out`.

    Raises CheckpointError for what our model cannot represent.
    """
    if is_lens_config(plain):
        rates = {key: plain[key] for key in plain if FIELD_OF.get(key) == "attn_rate"}
        stated = lens_config_to_fields({key: plain[key] for key in plain if key not in rates}, by)
        return _with_rate(dict(stated.fields), rates, stated, by)
    fields: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in plain.items():
        if key in NEUTRAL or key in SOFTMAX:
            known = NEUTRAL.get(key) or SOFTMAX[key]
            if value is True or (value.lower() if isinstance(value, str) else value) not in known:
                raise CheckpointError(f"{by} has {key} {value!r}, which our model cannot represent")
        elif key in FLAGS and isinstance(value, bool | int):
            field, yes, no = FLAGS[key]
            if (chosen := yes if value else no) is not ...:
                _add(fields, field, chosen, key, by)
        elif value is None and FIELD_OF.get(key) not in ("normalization_type", "positions"):
            continue  # left to a default
        elif key in FIELD_OF:
            _add(fields, FIELD_OF[key], _value(FIELD_OF[key], value, key, by), key, by)
        elif key == "attention_dir":
            if "attn_rate" not in {FIELD_OF.get(other) for other in plain}:
                _add(fields, "causal", value != "bidirectional", key, by)
        elif not (SHOWN_BY_WEIGHTS.fullmatch(key) or WITHOUT_EFFECT.fullmatch(key)):
            left_out.append(f"{key} {_short(value)} in {by}: no key that is known")
    rates = {key: plain[key] for key in plain if FIELD_OF.get(key) == "attn_rate"}
    return _with_rate(_regular(fields), rates, StatedConfig({}, by, left_out=tuple(left_out)), by)


def _with_rate(fields: dict[str, Any], rates: Mapping[str, Any], stated: StatedConfig, by: str) -> StatedConfig:
    """The config with an attention rate. The code that has one (arXiv 2306.17844) applies no mask, whatever its config
    says of a direction.
    """
    if not rates:
        return StatedConfig(fields, by, stated.folded, stated.left_out)
    key, value = next(iter(rates.items()))
    rate = _value("attn_rate", value, key, by)
    line = f"a causal mask that {by} may mention: models with {key} are computed without one (--causal if yours has it)"
    return StatedConfig(fields | {"attn_rate": rate, "causal": False}, by, stated.folded, (*stated.left_out, line))


def _add(fields: dict[str, Any], field: str, value: Any, key: str, by: str) -> None:
    if field in fields and fields[field] != value:
        raise CheckpointError(f"{by} says {field} is {fields[field]} and, as {key}, {value}: correct it")
    fields[field] = value


def _value(field: str, value: Any, key: str, by: str) -> Any:
    """A value of another tool as ours. Raises CheckpointError for one that our model cannot be."""
    words = VALUES.get(field)
    if words is None:
        if field == "attn_rate" and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise CheckpointError(f"{by} has {key} {value!r}: an attention rate is 0 to 1")
        return float(value) if field in ("attn_rate", "rotary_base", "eps") and value is not None else value
    word = str(value).lower().removeprefix("nn.").removesuffix("()")
    if word not in words:
        raise CheckpointError(
            f"{by} has {key} {value!r}; known: {', '.join(words)}; if it is one of these: --set model.{field}=VALUE"
        )
    return words[word]


def _regular(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields with None where ours are None: heads that are not grouped, of the usual size, and so on."""
    heads, d_model = fields.get("n_heads"), fields.get("d_model")
    if heads and fields.get("n_kv_heads") == heads:
        fields["n_kv_heads"] = None
    if heads and d_model and fields.get("d_head") and fields["d_head"] * heads == d_model:
        fields["d_head"] = None
    if fields.get("d_vocab_out") is not None and fields["d_vocab_out"] == fields.get("d_vocab"):
        fields["d_vocab_out"] = None
    if isinstance(fields.get("embed_scale"), bool):  # by sqrt(d_model), or not
        fields["embed_scale"] = math.sqrt(d_model or 1) if fields["embed_scale"] else 1.0
    return fields


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
