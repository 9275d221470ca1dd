"""What configs of Hugging Face say, in our terms. What we do not represent is refused, never dropped in silence."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from algoscope.core.errors import SubjectError
from algoscope.subjects._hf_families import FAMILIES, Family

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_python": "gelu",
    "quick_gelu": "quick_gelu", "tanh": "tanh", "relu2": "relu_squared", "leaky_relu": "leaky_relu",
}  # fmt: skip
BY_LENGTH = ("dynamic", "longrope")  # kinds whose angles change where the input is longer than the original context
ROTARY = ("default", "linear", "llama3", "yarn", *BY_LENGTH)
WINDOWED = ("full_attention", "sliding_attention")  # the kinds of blocks that are told apart
READ = frozenset({"model_type", "tie_word_embeddings", "algoscope", "auto_map"})
WITHOUT_EFFECT = re.compile(
    r"_.*|.*(dropout|pdrop|layerdrop|version|initializer|init_std|tokenizer|loss|flash_attn|attn_implementation).*|"
    r".*token(_ids?)?|(summary|output|classifier|unsloth|original_max_position)_.*|architectures|(torch_)?dtype|"
    r"name_or_path|license|num_labels|id2label|label2id|problem_type|task_specific_params|finetuning_task|"
    r"custom_pipelines|return_dict|use_cache|cache_implementation|torchscript|use_bfloat16|prefix|n_ctx|n_special|"
    r"predict_special_tokens|(model_)?max_length|(max_)?seq(uence)?_length|gradient_checkpointing|"
    r"chunk_size_feed_forward|pretraining_tp|reorder_and_upcast_attn|is_decoder|is_llama_config|"
    r"use_memory_efficient_attention|transformers\.js_config"
)
"""Keys of configs that change no logits in float32: they concern training, generation, or how things are computed."""
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1.0, "", [], {})
ROPE = frozenset({
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "truncate", "finetuned",
    "partial_rotary_factor", "short_factor", "long_factor",
})  # fmt: skip
"""What the library computes rotary frequencies from."""


def check_config(config: PretrainedConfig, name: str) -> Family:
    """The family of a config. Raises SubjectError, with the key and its value, for what our transformer does not
    represent: nothing that a config says is dropped in silence.
    """
    family, usual = family_of(config.model_type, name), type(config)().to_dict()
    represented = READ | family.also | set(family.fields.values())
    if "rope_parameters" in usual:  # the family has rotary positions
        represented |= {"rope_parameters", "rope_theta"}
    plain = config.to_dict() | _unread_rope(config, WINDOWED if _rotates_by_window(type(config)()) else ())
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


def _unread_rope(config: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """The keys of `rope_parameters` that frequencies are not computed from; those of these kinds of blocks have their
    own.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    paths = {key: value for key, value in rope.items() if key not in kinds}
    paths |= {f"{kind}.{key}": value for kind in kinds for key, value in (rope.get(kind) or {}).items()}
    return {f"rope_parameters.{path}": value for path, value in paths.items() if path.split(".")[-1] not in ROPE}


def family_of(model_type: str | None, name: str) -> Family:
    """The family of a `model_type`. Raises SubjectError, naming `name`, for one that is not supported."""
    if model_type is None:
        raise SubjectError(f"{name}: its config has no model_type; supported: {', '.join(FAMILIES)}")
    if model_type not in FAMILIES:
        raise SubjectError(
            f"{name}: the architecture {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def windows_of(config: PretrainedConfig, family: Family, name: str) -> tuple[int | None, ...] | None:
    """The sliding window of each block; None where no block has one that is shorter than the context."""
    if "sliding_window" not in family.also:
        return None
    kinds = ["sliding_attention"] * config.num_hidden_layers  # Mistral's and Phi-3's
    if "layer_types" in family.also:
        kinds = getattr(config, "layer_types", None) or kinds
    if set(kinds) - set(WINDOWED):
        raise SubjectError(f"{name}: its config has layer_types={kinds!r}, which algoscope does not represent")
    window = config.sliding_window
    if window is None or (window >= config.max_position_embeddings and not _rotates_by_window(config)):
        return None
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else None


def _rotates_by_window(config: Any) -> bool:
    """Whether blocks with a sliding window have rotary positions of their own, as in Gemma 3."""
    rope = getattr(config, "rope_parameters", None) or {}
    return any(isinstance(rope.get(kind), dict) for kind in WINDOWED)


def rotary_fields(source: Any, name: str) -> dict[str, Any]:
    """Rotary frequencies as the library computes them from the config, including scaling. Where they depend on the
    length of the input, the context is as long as they stay what they are.
    """
    config = source.config
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return {}
    rotary = source.base_model.rotary_emb
    by_window = {kind: rope[kind] for kind in WINDOWED if isinstance(rope.get(kind), dict)}
    if not by_window:
        return _one_rotation(config, name, rope, rotary, "")
    fields = {kind: _one_rotation(config, name, by_window[kind], rotary, f"{kind}_") for kind in rotary.layer_types}
    whole, windowed = fields.get("full_attention"), fields.get("sliding_attention")
    if whole is None or windowed is None:
        return whole or windowed or {}
    if whole["rotary_magnitude"] != windowed["rotary_magnitude"]:
        raise SubjectError(f"{name}: its config scales the rotated entries of some blocks alone: {rope!r}")
    return whole | {"window_rotary_frequencies": windowed["rotary_frequencies"]}


def _one_rotation(config: Any, name: str, rope: Mapping[str, Any], rotary: Any, prefix: str) -> dict[str, Any]:
    """The fields of one kind of blocks, whose buffers in the library's module have this prefix."""
    kind = rope.get("rope_type", "default")
    if kind not in ROTARY:
        raise SubjectError(
            f"{name}: rotary positions of the kind {kind!r} are not supported; supported: {', '.join(ROTARY)}"
        )
    # Where frequencies follow the length, the module keeps those of short inputs apart from those of its last input.
    frequencies = getattr(rotary, f"{prefix}original_inv_freq" if kind in BY_LENGTH else f"{prefix}inv_freq")
    size, share = 2 * len(frequencies), rope.get("partial_rotary_factor", 1.0)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size != 2 * math.ceil(int(head * share) / 2):
        raise SubjectError(
            f"{name}: its config has partial_rotary_factor={share}, but {config.model_type} of transformers "
            f"rotates {size} of the {head} entries of a head"
        )
    if size == 0:
        return {"positions": None}
    usual = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)
    fields = {
        "positions": "rotary", "rotary_base": rope["rope_theta"], "rotary_dim": size,
        "rotary_magnitude": float(getattr(rotary, f"{prefix}attention_scaling")),
    }  # fmt: skip
    if prefix or not torch.equal(frequencies.cpu(), usual):  # scaled, or an odd number of entries
        fields["rotary_frequencies"] = tuple(frequencies.tolist())
    if kind == "longrope":
        fields["n_ctx"] = min(rope["original_max_position_embeddings"], config.max_position_embeddings)
    return fields
