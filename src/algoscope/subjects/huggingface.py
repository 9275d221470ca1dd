"""Hugging Face models converted to our transformer, so that every site, edit and sweep works on them.

The library reads the folder (shards, tied weights, tokenizer); the weights are then renamed to those of our
transformer. Nothing is folded or centred: in float32 the logits equal those of `transformers` up to rounding.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, ConfigError, SubjectError, shown
from algoscope.core.files import user_path
from algoscope.networks.transformer import Transformer
from algoscope.subjects._hf_families import ACTIVATIONS, FAMILIES, check_config, family_of, rotary_fields, windows_of
from algoscope.subjects.hf_tokenizer import find_tokenizer
from algoscope.subjects.subject import Subject

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the library's environment variables for offline mode
DECODING = frozenset({
    "do_sample", "num_beams", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "min_length", "min_new_tokens", "exponential_decay_length_penalty", "guidance_scale",
    "penalty_alpha", "dola_layers", "watermarking_config", "token_healing", "stop_strings", "max_time",
})  # fmt: skip
"""Settings of generation that change which tokens are written."""
COMPARED, TOLERANCE = 16, 1e-3  # tokens whose logits are compared with the library's; largest difference, as a share


def open_hf(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A causal model of a supported family, in float32. Code in the folder is never run.

    Raises SubjectError where it is missing or not supported, CheckpointError where its weights are damaged, incomplete,
    or more than its config describes.
    """
    rest = str(user_path(rest)) if rest.startswith("~") else rest
    with _quiet():
        config, offline = _find_config(name, rest)
        check_config(config, name)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                rest,
                config=config,
                dtype=torch.float32,
                local_files_only=offline,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
            source, report = loaded
        except Exception as error:  # the library has no common class for the many ways a file can be damaged
            raise CheckpointError(f"{name}: its weights cannot be read: {_reason(error)}") from error
        _check_weights(report, name)
        model = convert(source, name)
        _compare(source, model, name)
        text = find_tokenizer(rest, config, offline)
    subject = Subject(name, model.to(device), text=text)
    subject.note = _unused_settings(source.generation_config)
    return subject


def _check_weights(report: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError where the files lack weights, have others, or have them in other shapes than the config
    says. Buffers that the library itself ignores are not in its report.
    """
    if report["missing_keys"]:
        raise CheckpointError(f"{name}: weights are missing: {_some(report['missing_keys'])}")
    for key, *shapes in sorted(report["mismatched_keys"]):
        got, wanted = (list(shape) for shape in shapes)
        raise CheckpointError(f"{name}: {key} has shape {got} in its files, its config says {wanted}")
    if report["unexpected_keys"]:
        raise CheckpointError(
            f"{name}: its files have weights that its config does not describe: {_some(report['unexpected_keys'])}; "
            "correct its config.json, or write the folder again with `save_pretrained`"
        )


def convert(source: Any, name: str = "the model") -> Transformer:
    """Our model with the weights of a `transformers` causal model; the tensors are shared, not copied.

    Raises SubjectError, naming `name`, for an architecture, or an option of one, that is not supported.
    """
    config = source.config
    family = check_config(config, name)
    shape: dict[str, Any] = dict(family.fixed) | {
        ours: getattr(config, theirs, None) for ours, theirs in family.fields.items()
    }
    shape["act_fn"] = ACTIVATIONS[shape["act_fn"]]
    shape["windows"] = windows_of(config, name)
    shape["d_mlp"] = shape["d_mlp"] or 4 * shape["d_model"]  # GPT-2's n_inner may be None
    if not getattr(config, "scale_attn_weights", True):
        shape["attn_scale"] = 1.0
    # A file may have an unembedding of its own although the config says that it is tied: the library then uses it.
    embed, unembed = source.get_input_embeddings().weight, source.get_output_embeddings().weight
    shape["tied_head"] = config.tie_word_embeddings and (embed is unembed or torch.equal(embed, unembed))
    try:
        cfg = ModelConfig(**shape, **rotary_fields(source, name))
    except ConfigError as error:
        raise SubjectError(f"{name}: {error}") from error
    weights = family.weights(cfg, {key: value.detach() for key, value in source.state_dict().items()})
    if not cfg.tied_head:
        weights["unembed.weight"] = unembed.detach()
    with torch.device("meta"):
        model = Transformer(cfg)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


@torch.no_grad()
def _compare(source: Any, model: Transformer, name: str) -> None:
    """Raises SubjectError where the logits of a few tokens are not those of the library, which is the reference."""
    shape, draw = (1, min(COMPARED, model.cfg.n_ctx)), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=draw)
    try:
        theirs = source.eval()(tokens, use_cache=False).logits
    except Exception as error:  # a config that the library accepts and cannot compute with
        raise SubjectError(f"{name}: transformers cannot run it: {_reason(error)}") from error
    apart = float((model(tokens) - theirs).abs().max() / theirs.abs().max())
    if theirs.isfinite().all() and not apart < TOLERANCE:
        raise SubjectError(
            f"{name}: its logits differ from those of transformers by {apart:.2g} of the largest: its config.json "
            "has an option that algoscope does not represent"
        )


# ---------------------------------------------------------------------- finding


def _find_config(name: str, rest: str) -> tuple[PretrainedConfig, bool]:
    """The config, and whether it was loaded offline: from a folder or the local cache, which are tried first."""
    forbidden = any(os.environ.get(switch, "0").lower() in ("1", "true", "yes", "on") for switch in SWITCHES)
    here = Path(rest).exists()
    if Path(rest).is_file():
        raise SubjectError(f"{name} is a file: give the folder that it is in, with its config.json")
    attempts = [True] if here or rest.startswith((".", "/", "~")) or forbidden else [True, False]
    for offline in attempts:
        try:
            if find_adapter_config_file(rest, local_files_only=offline) or any(Path(rest).glob("adapter_model.*")):
                raise SubjectError(
                    f"{name} is an adapter: merge it into its model first, with `merge_and_unload` of peft, and write "
                    "the result with `save_pretrained`"
                )
            if here and not (Path(rest) / "config.json").is_file():
                raise SubjectError(
                    f"no model at {name}: it has no config.json; give the folder that `save_pretrained` wrote"
                )
            plain, _ = PretrainedConfig.get_config_dict(rest, local_files_only=offline)
            _refuse_others(name, plain)
            return AutoConfig.from_pretrained(rest, local_files_only=offline, trust_remote_code=False), offline
        except SubjectError:
            raise
        except OSError as error:
            last: Exception = error
        except Exception as error:  # values of the wrong type or range raise errors of many classes
            raise SubjectError(f"{name}: its config cannot be read: {_reason(error)}") from error
    if here:
        raise SubjectError(f"{name}: its config cannot be read: {_reason(last)}") from last
    hub = "" if attempts == [True] else f", and the hub says: {_reason(last)}"
    raise SubjectError(
        f"no model at {name}: there is no such folder, and nothing in the local cache{hub}; give the folder that "
        "`save_pretrained` wrote"
    ) from last


def _refuse_others(name: str, plain: Mapping[str, Any]) -> None:
    """Raises SubjectError for a config that asks for code of its own, that is quantised, or of another family."""
    if not isinstance(plain, Mapping):
        raise SubjectError(f"{name}: its config.json holds {shown(plain)}, not the fields of a config")
    if plain.get("auto_map"):
        raise SubjectError(
            f"{name} asks to run code of its own (auto_map {plain['auto_map']}), which is never run: if it is a plain "
            f"model of {', '.join(FAMILIES)}, delete auto_map from its config.json"
        )
    if plain.get("quantization_config"):
        raise SubjectError(f"{name} is quantised: write its weights as floats first, with `dequantize` of transformers")
    family_of(plain.get("model_type"), name)


def _unused_settings(settings: Any) -> str:
    """A note on the settings of generation that would change a text and are not used; end tokens are."""
    unused = {key: value for key, value in settings.to_diff_dict().items() if key in DECODING and value}
    listed = ", ".join(f"{key}={value}" for key, value in sorted(unused.items()))
    return f"decoded greedily, without the {listed} of its generation_config.json" if listed else ""


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _reason(error: Exception) -> str:
    """The reason in an error of the library, on one line."""
    if "weights only load failed" in str(error).lower():
        return "they need code to be run, which is never done"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


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
