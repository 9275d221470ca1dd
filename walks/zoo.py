"""Models of every origin, all small: planted, trained here, and folders of Hugging Face, whole and damaged."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import algoscope as ag

SENTENCES = ["The Eiffel Tower stands in the city of Paris", "The Colosseum stands in the city of Rome"]
SPECIAL = ["<s>", "</s>", "<pad>"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHORT = {"n_digits": 1, "steps": 12, "batch": 16, "data.n_test": 20, "train.eval_every": 4, "train.checkpoint_every": 4}


OTHER = {"seed": 3, "lr": 0.5, "steps": 8, "batch": 8, "d_model": 16}
"""Changes of a recipe: another request."""
PAIR = "The city of Paris", "The city of Rome"
SPELLED = (*PAIR, "Rome", "1 a 1a")
"""Texts of which every tokenizer of a folder here has all words."""


def place(*names: str) -> Path:
    """A new folder in the zoo's own place."""
    where = Path(mkdtemp(prefix="zoo-")).joinpath(*names)
    where.mkdir(parents=True, exist_ok=True)
    return where


# ---------------------------------------------------------------------- tokenizers


def byte_level(template: str | None = None) -> Any:
    """Bytes as GPT-2 writes them; `template` says what is put around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _learn(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    if template:
        around = [(token, SPECIAL.index(token)) for token in SPECIAL[:2]]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return _wrapped(tokenizer)


def metaspace() -> Any:
    """Words with their space as Llama 2 has them, and bytes for characters that are not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<pad>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(fallback)
    _learn(tokenizer, [f"<0x{byte:02X}>" for byte in range(256)])
    document = json.loads(tokenizer.to_str())  # bytes are pieces like others, not special tokens
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return _wrapped(tokenizer)


def _learn(tokenizer: Tokenizer, more: Sequence[str] = (), **options: Any) -> None:
    special = [*SPECIAL, *more]
    trainer = trainers.BpeTrainer(vocab_size=470, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(SENTENCES * 3 + ["1 a 1a"] * 3, trainer)


def _wrapped(tokenizer: Tokenizer) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


# ---------------------------------------------------------------------- folders of Hugging Face

D_VOCAB = 480  # more than any of the tokenizers has
_WIDE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = _WIDE | {"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": D_VOCAB}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        transformers.GPT2Config, {"vocab_size": D_VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, _WIDE | {"max_position_embeddings": 64, "vocab_size": D_VOCAB}),
    "llama": (transformers.LlamaConfig, _LLAMA),
    "mistral": (transformers.MistralConfig, _LLAMA | {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, _LLAMA),
    "qwen3": (transformers.Qwen3Config, _LLAMA | {"head_dim": 6}),
}  # fmt: skip


def library_model(family: str, **options: Any) -> Any:
    """The library's own model, every weight random and large enough to matter."""
    make, sizes = FAMILIES[family]
    config = make(**(sizes | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2} | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + 0.3 * noise if weight.ndim == 1 else 1.2 * noise / weight.shape[-1] ** 0.5)
    return model


def folder(family: str, tokenizer: Any = None, **options: Any) -> tuple[Path, Any]:
    """A folder as `save_pretrained` writes it, and the model that was saved."""
    model, where = library_model(family, **options), place(family)
    model.save_pretrained(where)
    if tokenizer is not None:
        tokenizer.save_pretrained(where)
    return where, model


def changed(where: Path, file: str = "config.json", **fields: Any) -> None:
    """Change fields of a JSON file in place."""
    path = where / file
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | fields))


def with_weights(where: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights in place."""
    path = where / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# ---------------------------------------------------------------------- subjects


@cache
def runs() -> Path:
    """A runs directory with a finished run of each kind of task."""
    where = place("runs")
    quick = {name: value for name, value in SHORT.items() if name not in ("n_digits", "data.n_test", "batch")}
    ag.train("add3", name="add", settings=SHORT, runs_dir=where, progress=False)
    ag.train("copy8", name="copy", settings=quick | {"d_model": 8}, runs_dir=where, progress=False)
    ag.train("grok59", name="modular", settings=quick, runs_dir=where, progress=False)
    return where


@cache
def hf(kind: str) -> Path:
    """A whole folder of Hugging Face by kind."""
    return FOLDERS[kind]()[0]


FOLDERS: dict[str, Callable[[], tuple[Path, Any]]] = {
    "gpt2": lambda: folder("gpt2", byte_level()),
    "ends": lambda: folder("gpt2", byte_level("<s> $A </s>")),
    "llama": lambda: folder("llama", metaspace()),
    "neox": lambda: folder("gpt_neox"),
    "tall": lambda: folder("gpt2", byte_level(), n_layer=12, n_head=12),
}


NAMES = (
    "planted:induction", "planted:reversal", "planted:carry-adder", "run:add", "run:copy", "run:modular", "hf:gpt2",
    "hf:ends", "hf:llama", "hf:neox",
)  # fmt: skip


@cache
def subject(name: str, dtype: torch.dtype = torch.float32, stream: float = 1.0) -> Any:
    """A model of this zoo, its residual stream `stream` times as large."""
    form, _, rest = name.partition(":")
    where = {"run": f"run:{runs() / rest}", "hf": f"hf:{hf(rest)}" if form == "hf" else ""}.get(form, name)
    opened = ag.open(where).to_dtype(dtype)
    opened.model.embed.weight.data *= stream
    return opened


def copy_of(where: Path) -> Path:
    """A copy of a folder, to be damaged."""
    there = place("copy") / where.name
    shutil.copytree(where, there)
    return there


OPTIONS: dict[str, dict[str, list[Any]]] = {
    "gpt2": {
        "activation_function": ["gelu_new", "relu", "gelu", "quick_gelu"], "n_inner": [None, 20],
        "scale_attn_weights": [True, False], "scale_attn_by_inverse_layer_idx": [False, True],
        "reorder_and_upcast_attn": [False, True], "tie_word_embeddings": [True, False],
        "layer_norm_epsilon": [1e-5, 0.01],
    },
    "gpt_neox": {
        "num_attention_heads": [4, 2, 3], "use_parallel_residual": [True, False], "attention_bias": [True, False],
        "hidden_act": ["gelu", "relu"], "tie_word_embeddings": [False, True],
        "rope_parameters": [{"rope_theta": 100.0, "partial_rotary_factor": part} for part in (0.25, 0.4, 0.5, 1.0)],
    },
    "llama": {
        "attention_bias": [False, True], "mlp_bias": [False, True], "head_dim": [6, 10], "hidden_act": ["silu", "gelu"],
        "num_key_value_heads": [2, 1, 4], "tie_word_embeddings": [False, True],
        "rope_parameters": [
            {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
            {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        ],
    },
    "mistral": {"sliding_window": [None, 4, 64, 100], "head_dim": [6, 10], "num_key_value_heads": [2, 4]},
    "qwen2": {"use_sliding_window": [False, True], "sliding_window": [4, 64], "max_window_layers": [0, 1, 2]},
    "qwen3": {
        "attention_bias": [False, True], "use_sliding_window": [False, True], "sliding_window": [4],
        "max_window_layers": [0, 1],
    },
}  # fmt: skip
"""By family: fields of the config and values of them."""


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda where: with_weights(where, change)


def _poisoned(name: str, value: float) -> Callable[[Path], None]:
    return _weights(lambda weights: weights[name].flatten()[:1].fill_(value))


def _adapter(alone: bool) -> Callable[[Path], None]:
    def harm(where: Path) -> None:
        changed(where, "adapter_config.json", peft_type="LORA", base_model_name_or_path="somewhere")
        if alone:
            (where / "config.json").unlink()

    return harm


def _own_code(where: Path) -> None:
    changed(where, model_type="my_gpt", auto_map={"AutoConfig": "x.C"})
    (where / "x.py").write_text("open('it-has-run', 'w')")


def _cut(where: Path) -> None:
    (where / "model.safetensors").write_bytes((where / "model.safetensors").read_bytes()[:5000])


def _many_ends(where: Path) -> None:
    changed(where, "generation_config.json", eos_token_id=[1, *range(5, 400)])


def _says(file: str, text: str) -> Callable[[Path], Any]:
    return lambda where: (where / file).write_text(text)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "weights that the config does not mention": ("biased", lambda where: changed(where, attention_bias=False), "bias"),
    "a weight that is not a number": ("gpt2", _poisoned("transformer.h.1.mlp.c_fc.weight", float("nan")), "finite"),
    "an infinite weight": ("llama", _poisoned("model.norm.weight", float("inf")), "finite"),
    "a weight that is gone": ("gpt2", _weights(lambda w: w.pop("transformer.h.0.ln_1.weight")), "ln_1"),
    "a weight too many": ("gpt2", _weights(lambda w: w.update({"transformer.h.0.extra": torch.ones(3)})), "extra"),
    "an adapter beside the model": ("gpt2", _adapter(alone=False), "adapter"),
    "an adapter alone": ("gpt2", _adapter(alone=True), "adapter"),
    "code of its own": ("gpt2", _own_code, "code"),
    "capped logits": ("llama", lambda where: changed(where, final_logit_softcapping=30.0), "final_logit_softcapping"),
    "a config that is no JSON": ("gpt2", _says("config.json", "{not"), "config"),
    "weights cut short": ("gpt2", _cut, "weights"),
    "a tokenizer that is no JSON": ("gpt2", _says("tokenizer.json", "{not json"), "tokenizer.json"),
    "an empty tokenizer": ("gpt2", _says("tokenizer.json", "{}"), "tokenizer.json"),
    "several end tokens": ("gpt2", _many_ends, ""),
}  # fmt: skip
"""The folder, what is done to it, and a word of the refusal; no word: it works."""


@cache
def damaged(damage: str) -> Path:
    kind, harm, _ = DAMAGES[damage]
    where = copy_of(folder("llama", metaspace(), attention_bias=True)[0] if kind == "biased" else hf(kind))
    harm(where)
    return where
