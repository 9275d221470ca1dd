"""Adapters (LoRA) open merged: what `peft` stores, and a plain W + (alpha / r) B A on the library's own model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, CheckpointError, SubjectError
from hf_models import D_VOCAB, save, tokenizer

TOKENS = torch.randint(D_VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
PREFIX = "base_model.model."
USUAL: dict[str, Any] = {  # what peft 0.17 writes
    "alpha_pattern": {}, "auto_mapping": None, "bias": "none", "corda_config": None, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
    "lora_alpha": 6, "lora_bias": False, "lora_dropout": 0.1, "megatron_config": None, "megatron_core": "megatron.core",
    "modules_to_save": None, "peft_type": "LORA", "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": None,
    "target_modules": ["q_proj", "v_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf") / "llama", "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf") / "gpt2", "gpt2", with_tokenizer=False)


def some(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def updates(base: Path, ends: tuple[str, ...], rank: int = 2) -> dict[str, Tensor]:
    """A and B for each module whose name ends so."""
    model, weights = AutoModelForCausalLM.from_pretrained(base), {}
    for seed, (path, module) in enumerate(model.named_modules()):
        if not path.endswith(ends):
            continue
        kind = type(module).__name__
        rows, columns = module.weight.shape if kind != "Conv1D" else module.weight.T.shape
        names, shapes = ("lora_A.weight", "lora_B.weight"), ((rank, columns), (rows, rank))
        if kind == "Embedding":
            names, shapes = ("lora_embedding_A", "lora_embedding_B"), ((rank, rows), (columns, rank))
        weights |= {
            f"{PREFIX}{path}.{name}": some(*shape, seed=seed) for name, shape in zip(names, shapes, strict=True)
        }
    return weights


def write(folder: Path, base: Path | str, weights: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(USUAL | {"base_model_name_or_path": str(base)} | settings))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def by_hand(base: Path, weights: dict[str, Tensor], scale: Callable[[str], float] = lambda path: 3.0) -> Tensor:
    """The logits of the library's model, each update added to its matrix; other weights as they are."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for key, value in weights.items():
        path, _, kind = key.removeprefix(PREFIX).partition(".lora_")
        if kind.startswith("A"):
            module = model.get_submodule(path)
            update = scale(path) * weights[f"{PREFIX}{path}.lora_B.weight"] @ value
            module.weight.data += update.T if type(module).__name__ == "Conv1D" else update
        elif kind == "":
            model.get_parameter(path).data.copy_(value)
    with torch.no_grad():
        return model(TOKENS).logits


def closeness(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_an_adapter_opens_merged_with_the_tokenizer_of_its_base(llama: Path, tmp_path: Path) -> None:
    weights = updates(llama, ALL)
    folder = write(tmp_path / "adapter", llama, weights, target_modules=list(ALL))
    model = ag.open(f"hf:{folder}")
    assert closeness(model.run(TOKENS)[0], by_hand(llama, weights)) < 1e-5
    assert closeness(model.run(TOKENS)[0], ag.open(f"hf:{llama}").run(TOKENS)[0]) > 0.1
    assert model.to_tokens("The capital").tolist() == ag.open(f"hf:{llama}").to_tokens("The capital").tolist()
    assert model.note == f"an adapter, merged into {llama}"


def test_its_own_tokenizer_counts_where_it_has_one(gpt2: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", gpt2, updates(gpt2, ("c_attn",)), target_modules=["c_attn"])
    assert ag.open(f"hf:{folder}").to_tokens("5 6").tolist() == [[5, 6]]
    tokenizer().save_pretrained(folder)
    assert ag.open(f"hf:{folder}").to_string(ag.open(f"hf:{folder}").to_tokens("The capital")[0]) == "The capital"


@pytest.mark.parametrize("stored", [True, False])
def test_matrices_that_are_stored_the_other_way_round(stored: bool, gpt2: Path, tmp_path: Path) -> None:
    weights = updates(gpt2, ("c_attn", "c_proj", "c_fc"))
    folder = write(tmp_path / "it", gpt2, weights, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=stored)
    assert closeness(ag.open(f"hf:{folder}").run(TOKENS)[0], by_hand(gpt2, weights)) < 1e-5


def test_ranks_and_scales_by_module_and_rank_stabilised(llama: Path, tmp_path: Path) -> None:
    weights = updates(llama, ("q_proj",)) | updates(llama, ("v_proj",), rank=5)
    patterns = {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {r"layers\.[01]\.self_attn\.q_proj": 20}}
    folder = write(tmp_path / "it", llama, weights, use_rslora=True, **patterns)

    def scale(path: str) -> float:
        alpha = 20 if path.endswith(("0.self_attn.q_proj", "1.self_attn.q_proj")) else 6
        return alpha / math.sqrt(5 if "v_proj" in path else 2)

    assert closeness(ag.open(f"hf:{folder}").run(TOKENS)[0], by_hand(llama, weights, scale)) < 1e-5


def test_modules_that_were_trained_whole_and_biases(gpt2: Path, tmp_path: Path) -> None:
    weights = updates(gpt2, ("c_attn",)) | {
        f"{PREFIX}transformer.ln_f.weight": some(24), f"{PREFIX}transformer.h.1.attn.c_attn.base_layer.bias": some(72),
    }  # fmt: skip
    plain = {key.replace(".base_layer", ""): value for key, value in weights.items()}
    folder = write(
        tmp_path / "it", gpt2, weights, target_modules=["c_attn"], modules_to_save=["ln_f"], bias="lora_only"
    )
    assert closeness(ag.open(f"hf:{folder}").run(TOKENS)[0], by_hand(gpt2, plain)) < 1e-5


def test_an_unembedding_of_its_own_leaves_the_embedding_as_it_is(gpt2: Path, tmp_path: Path) -> None:
    head = some(D_VOCAB, 24)
    folder = write(
        tmp_path / "it", gpt2, {f"{PREFIX}lm_head.weight": head}, target_modules=["c_attn"], layers_to_transform=[7],
        modules_to_save=["lm_head"],
    )  # fmt: skip
    model = ag.open(f"hf:{folder}")
    assert not model.cfg.tied_head
    assert torch.equal(model.token_embedding(), ag.open(f"hf:{gpt2}").token_embedding())
    hidden = AutoModelForCausalLM.from_pretrained(gpt2).transformer(TOKENS).last_hidden_state
    assert closeness(model.run(TOKENS)[0], (hidden @ head.T).detach()) < 1e-5


def test_an_update_of_the_embedding(llama: Path, tmp_path: Path) -> None:
    weights = updates(llama, ("embed_tokens",))
    folder = write(tmp_path / "it", llama, weights, target_modules=["embed_tokens"])
    a, b = weights.values()
    difference = ag.open(f"hf:{folder}").token_embedding() - ag.open(f"hf:{llama}").token_embedding()
    torch.testing.assert_close(difference, 3.0 * (b @ a).T)


def test_its_base_is_found_beside_it_or_is_given(llama: Path, tmp_path: Path, run, capsys) -> None:
    weights = updates(llama, ("q_proj", "v_proj"))
    lost = write(tmp_path / "lost", "./somewhere", weights)
    capsys.readouterr()
    code, _, err = run("generate", f"hf:{lost}?base={tmp_path}", "The")
    assert (code, err.count("\n")) == (2, 1)
    expected = by_hand(llama, weights)
    assert closeness(ag.open(f"hf:{lost}?base={llama}").run(TOKENS)[0], expected) < 1e-5
    beside = write(tmp_path / "beside", "base", weights)
    (beside / "base").symlink_to(llama)
    assert closeness(ag.open(f"hf:{beside}").run(TOKENS)[0], expected) < 1e-5
    with pytest.raises(
        SubjectError, match=r"an adapter of \./somewhere, which does not open: no model .*\?base=FOLDER"
    ):
        ag.open(f"hf:{lost}")


# ---------------------------------------------------------------------- refused

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "has use_dora=True, which algoscope does not represent: merge it"),
    "another kind": ({"peft_type": "IA3"}, "an adapter of the kind 'IA3'; only LORA"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "has layer_replication="),
    "single tokens": ({"trainable_token_indices": [3]}, "has trainable_token_indices="),
    "a bias of B": ({"lora_bias": True}, "has lora_bias=True"),
    "a start that changes the base": ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "has task_type='SEQ_CLS'"),
    "a key of a later version": ({"use_something_new": True}, "has use_something_new=True"),
    "no rank": ({"r": None}, "has r=None, not a number above 0"),
    "a pattern": ({"rank_pattern": [1]}, r"has rank_pattern=\[1\], not numbers by module"),
    "no base": ({"base_model_name_or_path": None}, r"names no base model: give it with hf:.*\?base=FOLDER"),
    "another rank": ({"r": 3}, "q_proj has an update of rank 2, its adapter_config.json says 3"),
    "a target that it lacks": ({"target_modules": ["q_proj", "o_proj"]}, "no weights for .*o_proj"),
}  # fmt: skip


@pytest.mark.parametrize("how", SETTINGS)
def test_a_setting_that_is_not_represented_is_named(how: str, llama: Path, tmp_path: Path) -> None:
    settings, words = SETTINGS[how]
    folder = write(tmp_path / "it", llama, updates(llama, ("q_proj", "v_proj")), **settings)
    with pytest.raises(AlgoscopeError, match=words) as refused:
        ag.open(f"hf:{folder}")
    assert "\n" not in str(refused.value)


def test_weights_that_do_not_fit_are_named(llama: Path, tmp_path: Path) -> None:
    weights = updates(llama, ("q_proj", "v_proj"))
    key = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"
    damages: dict[str, dict[str, Tensor]] = {
        "q_proj has lora_A without its partner": {k: v for k, v in weights.items() if k != key},
        r"q_proj has shape \[30, 24\] in the adapter, \[24, 24\]": weights | {key: some(30, 2)},
        "weights for model.layers.9.self_attn.q_proj, which": {
            k.replace("s.2.", "s.9."): v for k, v in weights.items()
        },
        "its adapter has model.norm.scale, which": weights | {f"{PREFIX}model.norm.scale": some(24)},
        r"norm.weight has shape \[3\] in the adapter": weights | {f"{PREFIX}model.norm.weight": some(3)},
        "lora_magnitude_vector": weights | {f"{PREFIX}model.layers.0.self_attn.q_proj.lora_magnitude_vector": some(24)},
    }
    for number, (words, damaged) in enumerate(damages.items()):
        folder = write(tmp_path / f"{number}", llama, damaged, target_modules="all-linear")
        with pytest.raises(CheckpointError, match=words):
            ag.open(f"hf:{folder}")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        ag.open(f"hf:{folder}")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(SubjectError, match=r"without weights: it has no adapter_model\.safetensors"):
        ag.open(f"hf:{folder}")
    torch.save(weights, folder / "adapter_model.bin")
    assert closeness(ag.open(f"hf:{folder}").run(TOKENS)[0], by_hand(llama, weights)) < 1e-5


def test_a_base_is_for_adapters_and_is_none_itself(llama: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", llama, updates(llama, ("q_proj", "v_proj")))
    second = write(tmp_path / "second", first, load_file(first / "adapter_model.safetensors"))
    refusals = {
        f"hf:{second}": "which is an adapter too: merge that one first",
        f"hf:{llama}?base={llama}": "is no adapter, so it has no base model",
        f"hf:{first}?bass={llama}": "unknown option of an hf: name 'bass': did you mean 'base'",
        f"hf:{llama}?dtype=bfloat": "unknown float type 'bfloat': did you mean 'bfloat16'",
        f"hf:{llama}?dtype": "write dtype=VALUE",
    }
    for name, words in refusals.items():
        with pytest.raises(AlgoscopeError, match=words):
            ag.open(name)
    (first / "adapter_config.json").unlink()
    with pytest.raises(SubjectError, match=r"without an adapter_config\.json"):
        ag.open(f"hf:{first}")
