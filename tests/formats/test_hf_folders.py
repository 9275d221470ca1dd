"""Folders of Hugging Face: what is in them is opened as it is or refused in one line; nothing of it is dropped in
silence, and no code in it is run.
"""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, CheckpointError, SubjectError
from algoscope.subjects.hf_tokenizer import TokenizerText
from hf_models import CONFIGS, D_VOCAB, make, save

TOKENS = torch.randint(D_VOCAB, (2, 60), generator=torch.Generator().manual_seed(0))


def edit(path: Path, **changes: Any) -> None:
    plain = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(plain | changes))


def differs(folder: Path) -> float:
    """How far our logits are from those of the library, as a share of the largest."""
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = source(TOKENS).logits
    return float((ag.open(f"hf:{folder}")(TOKENS) - theirs).abs().max() / theirs.abs().max())


def refused(folder: Path, words: str, error: type[AlgoscopeError] = SubjectError) -> None:
    with pytest.raises(error, match=words) as raised:
        ag.open(f"hf:{folder}")
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama 3", {"attention_bias": False}, r"k_proj\.bias.* and 9 more.*correct its config\.json"),
        ("llama", {"num_hidden_layers": 2}, r"weights that its config does not describe: model\.layers\.2\."),
        ("gpt2", {"n_layer": 2}, r"weights that its config does not describe: .*h\.2\."),
        ("qwen3", {"model_type": "llama", "max_window_layers": None}, r"does not describe: .*k_norm"),
        ("llama", {"tie_word_embeddings": False, "intermediate_size": 20}, r"has shape \[.*40\].*config says \[.*20\]"),
        ("gpt2", {"n_positions": 32}, r"wpe\.weight has shape \[64, 24\] in its files, its config says \[32, 24\]"),
    ],
)
def test_weights_that_the_config_does_not_describe_are_named(
    family: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    edit(save(tmp_path / "model", family, with_tokenizer=False) / "config.json", **changes)
    refused(tmp_path / "model", words, CheckpointError)


@pytest.mark.parametrize("family", ["llama", "gpt2 exact gelu, wide"])
def test_an_unembedding_in_the_file_counts_whatever_the_config_says(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", family, with_tokenizer=False)
    edit(folder / "config.json", tie_word_embeddings=True)
    assert differs(folder) < 1e-5
    assert not ag.open(f"hf:{folder}").cfg.tied_head


def test_a_second_copy_of_a_tied_embedding_is_no_unembedding_of_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "gpt2", with_tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert ag.open(f"hf:{folder}").cfg.tied_head
    assert differs(folder) < 1e-5


def test_buffers_that_the_library_ignores_are_no_weights(tmp_path: Path) -> None:
    buffers = {"gpt2": "transformer.h.0.attn.bias", "llama": "model.layers.0.self_attn.rotary_emb.inv_freq"}
    for family, name in buffers.items():
        folder = save(tmp_path / family, family, with_tokenizer=False)
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
        assert differs(folder) < 1e-5


# ---------------------------------------------------------------------- configs

UNREPRESENTED: dict[str, Any] = {
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "logit_scale": 0.5, "embedding_multiplier": 12.0,
    "residual_multiplier": 0.2, "attention_multiplier": 0.1, "query_pre_attn_scalar": 256, "clip_qkv": 8.0,
    "use_qk_norm": True, "norm_type": "layernorm", "sliding_window": 16, "parallel_attn": True, "no_bias": True,
    "partial_rotary_factor": 0.5, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "is_encoder_decoder": True, "text_config": {"hidden_size": 24}, "per_layer_config": {"1": {"hidden_act": "relu"}},
}  # fmt: skip


@pytest.mark.parametrize("key", UNREPRESENTED)
def test_a_key_that_our_model_does_not_represent_is_refused_with_its_value(key: str, tmp_path: Path) -> None:
    edit(save(tmp_path / "model", "llama", with_tokenizer=False) / "config.json", **{key: UNREPRESENTED[key]})
    refused(tmp_path / "model", rf"its config has {key}=")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters"),
        ("mistral", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 5.0}}, "kind 'proportional'"),
        ("llama", {"rope_parameters": {"rope_theta": 5.0, "mrope_section": [1, 1, 1]}}, r"rope_parameters\.mrope"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, r"rope_parameters\.full_attention"),
        ("llama", {"rms_norm_eps": float("nan")}, "eps: Input should be a finite number"),
        ("llama", {"hidden_size": "24"}, "hidden_size.* int"),
        ("llama", {"is_causal": False}, r"its logits differ from those of transformers by \d"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "transformers cannot run it: .*sliding_window"),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    edit(save(tmp_path / "model", family, with_tokenizer=False) / "config.json", **changes)
    refused(tmp_path / "model", words)


def test_heads_that_do_not_share_keys_evenly_are_refused(tmp_path: Path) -> None:
    config = LlamaConfig(**CONFIGS["llama"].to_diff_dict() | {"num_attention_heads": 6, "num_key_value_heads": 4})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", "n_heads 6 is not a multiple of n_kv_heads 4")


def test_keys_without_effect_are_no_obstacle(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", with_tokenizer=False)
    edit(
        folder / "config.json", logit_scale=1.0, final_logit_softcapping=None, use_qk_norm=False, pretraining_tp=2,
        _name_or_path="x", attention_dropout=0.1, unsloth_version="2025", rope_interleaved=False, torch_dtype="float16",
        task_specific_params={"a": 1}, layer_types=["full_attention"] * 3, initializer_range=0.5, is_llama_config=True,
    )  # fmt: skip
    assert differs(folder) < 1e-5


# ---------------------------------------------------------------------- sliding windows

_NAMED = ["sliding_attention", "full_attention", "sliding_attention"]


def _from(block: int, used: bool = True) -> dict[str, Any]:
    return {"use_sliding_window": used, "sliding_window": 9, "max_window_layers": block, "layer_types": None}


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 16}, (16, 16, 16)),
        ("mistral", {"sliding_window": 64}, None),
        ("qwen2", _from(2), (None, None, 9)),
        ("qwen2", _from(28), None),
        ("qwen2", _from(0, used=False), None),
        ("qwen3", _from(0) | {"layer_types": _NAMED}, (9, None, 9)),
    ],
)
def test_each_block_sees_what_its_window_shows_and_the_context_is_whole(
    family: str, changes: dict[str, Any], windows: tuple[int | None, ...] | None, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", family, with_tokenizer=False)
    edit(folder / "config.json", **changes)
    model = ag.open(f"hf:{folder}")
    assert (model.cfg.windows, model.cfg.n_ctx) == (windows, 64)
    assert differs(folder) < 1e-5
    if windows:
        for target, to in (("huggingface", "out"), ("transformerlens", "out.safetensors")):
            with pytest.raises(SubjectError, match=r"sliding windows|are normed"):
                ag.export(model, target, tmp_path / to)


# ---------------------------------------------------------------------- rotary positions


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 8, 12])
def test_neox_rotates_what_the_library_rotates_odd_numbers_and_none_included(n_heads: int, tmp_path: Path) -> None:
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    config = GPTNeoXConfig(**shape, vocab_size=D_VOCAB, num_attention_heads=n_heads)  # a quarter of each head
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    assert differs(tmp_path / "model") < 1e-5


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_a_text_ends_at_any_end_token_of_the_folder(where: str, tmp_path: Path) -> None:
    source = make("llama")
    folder = save(tmp_path / "model", "llama")
    prompt = ag.open(f"hf:{folder}").to_tokens("The capital of France")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    free = source.generate(prompt, eos_token_id=None, **options)[0, prompt.shape[1] :]
    (folder / "generation_config.json").unlink()
    for ends in ([1, int(free[2])], int(free[0]), [int(free[5]), int(free[1])]):
        edit(folder / where, eos_token_id=ends)
        library = AutoModelForCausalLM.from_pretrained(folder)
        theirs = library.generate(prompt, **options)[0, prompt.shape[1] :]
        model = ag.open(f"hf:{folder}")
        assert model.generate("The capital of France", 8) == model.to_string(theirs), ends


def test_settings_of_generation_that_are_not_used_are_said(run, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    assert ag.open(f"hf:{folder}").note == ""
    edit(folder / "generation_config.json", repetition_penalty=1.3, do_sample=True, max_length=50)
    note = "decoded greedily, without the do_sample=True, repetition_penalty=1.3 of its generation_config.json"
    assert ag.open(f"hf:{folder}").note == note
    assert run("generate", f"hf:{folder}", "The")[2].endswith(note + "\n")


# ---------------------------------------------------------------------- code

CODE = "import pathlib\npathlib.Path('it_ran').touch()\nclass C: ...\n"


def custom_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)


class Mischief:
    def __reduce__(self):
        return Path.touch, (Path("it_ran"),)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Mischief()}, folder / "pytorch_model.bin")


def tokenizer_of_its_own(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["x.C", None]})


ASKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a config of its own": (
        lambda folder: edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "x.C"}),
        "asks to run code of its own .*x.C.*never run",
    ),
    "a known family": (
        lambda folder: edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "x.C"}), "asks to run code",
    ),
    "somebody else's repository": (
        lambda folder: edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "other/code--x.C"}),
        "asks to run code",
    ),
    "nested": (
        lambda folder: edit(folder / "config.json", text_config={"model_type": "x", "auto_map": {"AutoConfig": "x.C"}}),
        "text_config",
    ),
    "not even a map": (lambda folder: edit(folder / "config.json", auto_map=["x.C"]), "asks to run code"),
    "a pickle": (pickled, "need code to be run, which is never done"),
    "generation": (custom_generate, ""),
    "a tokenizer": (tokenizer_of_its_own, ""),
    "a pipeline": (lambda folder: edit(folder / "config.json", custom_pipelines={"text": {"impl": "x.C"}}), ""),
}  # fmt: skip


@pytest.mark.parametrize("how", ASKS)
def test_no_code_is_run_and_nobody_is_asked(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, words = ASKS[how]
    monkeypatch.chdir(tmp_path)
    save(Path("model"))
    Path("model", "x.py").write_text(CODE)
    prepare(Path("model"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    if words:
        refused(Path("model"), words, AlgoscopeError)
    else:
        model = ag.open("hf:model")
        model.generate("The" if isinstance(model.text, TokenizerText) else "5", 2)
    assert not Path("it_ran").exists()
    assert capsys.readouterr() == ("", "")


def test_the_reason_is_that_of_this_folder(tmp_path: Path) -> None:
    for content, words in {"{": "not a valid JSON", "{}": "no model_type", "[]": "config cannot be read"}.items():
        folder = save(tmp_path / "model", with_tokenizer=False)
        (folder / "config.json").write_text(content)
        refused(folder, words)
    (folder / "config.json").unlink()
    refused(folder, r"it has no config\.json")
    refused(folder / "model.safetensors", "is a file: give the folder that it is in")
