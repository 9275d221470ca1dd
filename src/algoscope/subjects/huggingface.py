"""Hugging Face models converted to our transformer, so that every site, edit and sweep works on them.

The library reads the folder (shards, tied weights, tokenizer); the weights are then renamed to those of our
transformer. Nothing is folded or centred: in float32 the logits equal those of `transformers` up to rounding.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, ConfigError, SubjectError, some_of
from algoscope.networks.transformer import Transformer
from algoscope.subjects._hf_adapters import merge
from algoscope.subjects._hf_configs import ACTIVATIONS, check_config, rotary_fields, windows_of
from algoscope.subjects._hf_places import Place, find_place, quiet, reason_of
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.hf_tokenizer import end_tokens, find_tokenizer
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers, Text

DECODING = frozenset({
    "do_sample", "num_beams", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "min_length", "min_new_tokens", "exponential_decay_length_penalty", "guidance_scale",
    "penalty_alpha", "dola_layers", "watermarking_config", "token_healing", "stop_strings", "max_time",
})  # fmt: skip
"""Settings of generation that change which tokens are written."""
BUFFERS = re.compile(r"\.(attn|attention)\.((masked_)?bias|rotary_emb\.inv_freq)$")
"""What old versions of the library stored beside the weights: masks, and frequencies that follow from the config."""
COMPARED = 16
"""Tokens whose logits are compared with the library's."""
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.15}
"""How far logits may differ by rounding, as a root mean square and a share of the logits'; else 1e-3."""


def open_hf(
    name: str,
    rest: str,
    directory: Path,
    device: str,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
) -> Subject:
    """A causal model of a supported family, in float32 unless a `dtype` is given. Code in the folder is never run.

    An adapter (LoRA) is merged into its base model, which its config or `?base=FOLDER` names.

    Raises SubjectError where it is missing or not supported, CheckpointError where its weights are damaged, incomplete,
    or more than its config describes.
    """
    with quiet():
        place = find_place(name, rest)
        check_config(place.config, name)
        source = _load(name, place, dtype or place.dtype or torch.float32)
        if place.adapter is not None:
            merge(source, place.adapter, name)
        model = convert(source, name)
        _compare(source, model, name)
        if tokenizer is None:
            text = find_tokenizer(place.texts, place.config, place.offline)
        else:
            text = _text(tokenizer, source)
    subject = Subject(name, model.to(device), text=text)
    subject.note = "; ".join(filter(None, (place.note, _shortened(place.config, model), _unused_settings(source))))
    return subject


def open_model_object(
    source: Any,
    name: str,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Subject:
    """A model of `transformers` in memory. Its weights are copied, so that training it further does not change the
    subject; the model itself, its mode and its gradients stay as they are.

    `dtype`: None: that of the model. `tokenizer`: of `transformers` or ours; None: texts are token ids.

    Raises SubjectError for an architecture, or an option of one, that is not supported.
    """
    if any(weight.is_meta for weight in source.parameters()):
        raise SubjectError(f"{name}: its weights are not loaded (they are on the device meta): load them first")
    with quiet():
        model = convert(source, name)
        dtype = dtype or model.embed.weight.dtype
        copies = {key: value.to(device, dtype, copy=True) for key, value in model.state_dict().items()}
        model.load_state_dict(copies, assign=True)
        _compare(source, model, name)
        text = _text(tokenizer, source)
    subject = Subject(name, model, text=text)
    subject.note = "; ".join(filter(None, (_shortened(source.config, model), _unused_settings(source))))
    return subject


def _text(tokenizer: object, source: Any) -> Text:
    d_vocab, ends = source.config.vocab_size, end_tokens(source.generation_config, source.config)
    return text_of(tokenizer, d_vocab, ends) or Numbers(d_vocab, ends=ends or ())


def _load(name: str, place: Place, dtype: torch.dtype) -> Any:
    """The library's model."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.weights,
            config=place.config,
            dtype=dtype,
            local_files_only=place.offline,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    except Exception as error:  # the library has no common class for the many ways a file can be damaged
        raise CheckpointError(f"{name}: its weights cannot be read: {reason_of(error)}") from error
    source, report = loaded
    _check_weights(report, name)
    return source


def _check_weights(report: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError where the files lack weights, have others, or have them in other shapes than the config
    says. Buffers that the library itself ignores are not in its report, and some of its old versions no weights.
    """
    if report["missing_keys"]:
        raise CheckpointError(f"{name}: weights are missing: {some_of(sorted(report['missing_keys']))}")
    for key, *shapes in sorted(report["mismatched_keys"]):
        got, wanted = (list(shape) for shape in shapes)
        raise CheckpointError(f"{name}: {key} has shape {got} in its files, its config says {wanted}")
    if unknown := [key for key in report["unexpected_keys"] if not BUFFERS.search(key)]:
        raise CheckpointError(
            f"{name}: its files have weights that its config does not describe: {some_of(sorted(unknown))}; "
            "correct its config.json, or write the folder again with `save_pretrained`"
        )


# ---------------------------------------------------------------------- converting


class _Weights(dict[str, Tensor]):
    """The weights of a model of the library, which remember what was read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.unread = set(weights)

    def __getitem__(self, key: str) -> Tensor:
        self.unread.discard(key)
        return super().__getitem__(key)


def convert(source: Any, name: str = "the model") -> Transformer:
    """Our model with the weights of a `transformers` causal model; the tensors are shared, not copied.

    Raises SubjectError, naming `name`, for an architecture, or an option of one, that is not supported.
    """
    config = source.config
    family = check_config(config, name)
    embed, head = source.get_input_embeddings(), source.get_output_embeddings()
    if head is None:
        raise SubjectError(f"{name}: a {type(source).__name__} has no logits: give the model for causal language")
    shape: dict[str, Any] = {ours: getattr(config, theirs, None) for ours, theirs in family.fields.items()}
    shape |= {"windows": windows_of(config, family, name), "act_fn": ACTIVATIONS[shape["act_fn"]]}
    # A file may have an unembedding of its own although the config says that it is tied: the library then uses it.
    tied = embed.weight is head.weight or torch.equal(embed.weight, head.weight)
    shape |= {"tied_head": config.tie_word_embeddings and tied, "head_bias": head.bias is not None}
    if hasattr(embed, "embed_scale"):
        shape["embed_scale"] = float(embed.embed_scale.to(embed.weight.dtype))
    shape |= rotary_fields(source, name)
    try:
        cfg = ModelConfig(**shape | dict(family.fixed) | family.more(config))
    except ConfigError as error:
        raise SubjectError(f"{name}: {error}") from error
    state = _Weights({key: value.detach() for key, value in source.state_dict().items()})
    try:
        weights = family.weights(cfg, state)
    except KeyError as error:
        raise SubjectError(f"{name} is not a plain {type(source).__name__}: it has no weight {error}") from error
    weights |= _head_weights(cfg, head, weights)
    heads = {f"{key}.{kind}" for key, module in source.named_modules() if module is head for kind in ("weight", "bias")}
    if unread := state.unread - heads:
        raise SubjectError(f"{name}: its weights {some_of(sorted(unread))} are none of a plain {type(source).__name__}")
    with torch.device("meta"):
        model = Transformer(cfg)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise SubjectError(f"{name} is not a plain {type(source).__name__}: {reason_of(error)}") from error
    return model


def _head_weights(cfg: ModelConfig, head: nn.Linear, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The unembedding of a model, where its family has none of its own."""
    ours: dict[str, Tensor] = {}
    if not cfg.tied_head and "unembed.weight" not in weights:
        ours["unembed.weight"] = head.weight.detach()
    if cfg.head_bias:
        ours["unembed.bias"] = head.bias.detach()
    return ours


@torch.no_grad()
def _compare(source: Any, model: Transformer, name: str) -> None:
    """Raises SubjectError where the logits of a few tokens are not those of the library, which is the reference. The
    library's model stays in the mode that it has.
    """
    shape, draw = (1, min(COMPARED, model.cfg.n_ctx)), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=draw)
    modes = {module: module.training for module in source.modules()}
    try:
        theirs = source.eval()(tokens.to(source.device), use_cache=False).logits
    except Exception as error:  # a config that the library accepts and cannot compute with
        raise SubjectError(f"{name}: transformers cannot run it: {reason_of(error)}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    ours = model(tokens.to(model.embed.weight.device))
    tolerance = max(TOLERANCES.get(dtype, 1e-3) for dtype in (ours.dtype, theirs.dtype))
    expected = theirs.cpu().double()
    apart = float((ours.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-30))
    if expected.isfinite().all() and not apart < tolerance:
        raise SubjectError(
            f"{name}: its logits differ from those of transformers by {apart:.2g} of their size: its config.json "
            "has an option that algoscope does not represent"
        )


# ---------------------------------------------------------------------- notes


def _shortened(config: PretrainedConfig, model: Transformer) -> str:
    """A note on a context that is shorter than the config's."""
    longest, n_ctx = config.max_position_embeddings, model.cfg.n_ctx
    if n_ctx >= longest:
        return ""
    return f"its context is {n_ctx} tokens, not {longest}: beyond those the library takes other rotary frequencies"


def _unused_settings(source: Any) -> str:
    """A note on the settings of generation that would change a text and are not used; end tokens are."""
    unused = {key: value for key, value in source.generation_config.to_diff_dict().items() if key in DECODING and value}
    listed = ", ".join(f"{key}={value}" for key, value in sorted(unused.items()))
    return f"decoded greedily, without the {listed} of its generation_config.json" if listed else ""
