"""Models of `transformers` in memory open without being touched, and what is done to them later changes nothing."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

import algoscope as ag
from algoscope.core.errors import SubjectError
from algoscope.subjects.huggingface import open_model_object
from algoscope.subjects.text import Letters
from hf_models import CONFIGS, D_VOCAB, MORE, make, save, tokenizer

TOKENS = torch.randint(D_VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))


def closeness(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def state_of(model: Any) -> tuple:
    """Whatever opening could change."""
    return (
        {name: (weight.data_ptr(), weight.requires_grad, weight.grad) for name, weight in model.named_parameters()},
        {name: value.clone() for name, value in model.named_buffers()},
        [module.training for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma 2", "phi 3, longrope"])
def test_a_model_in_memory_opens_and_stays_what_it_is(family: str) -> None:
    source = make(family).train()
    next(source.children()).eval()
    weights, before = copy.deepcopy(source.state_dict()), state_of(source)
    ours = open_model_object(source, "mine")
    torch.testing.assert_close(state_of(source), before, rtol=0, atol=0)
    torch.testing.assert_close(source.state_dict(), weights, rtol=0, atol=0)
    theirs = source.eval()(TOKENS).logits
    assert closeness(ours.run(TOKENS)[0], theirs.detach()) < 1e-5
    theirs.sum().backward()
    assert not any(weight.requires_grad for weight in ours.model.parameters())


def test_training_it_further_changes_no_subject() -> None:
    source = make("llama")
    ours = open_model_object(source, "mine")
    before, name = ours.run(TOKENS)[0], ours.weights_sha256
    with torch.no_grad():
        for weight in source.parameters():
            weight.add_(1.0)
    assert torch.equal(ours.run(TOKENS)[0], before)
    assert ours.weights_sha256 == name


def test_it_is_the_model_of_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "it", "gpt2")
    ours = ag.open(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer())
    there = ag.open(f"hf:{folder}")
    assert ours.weights_sha256 == there.weights_sha256
    assert ours.to_tokens("The capital").tolist() == there.to_tokens("The capital").tolist()
    assert (ours.text.end_tokens, ours.note) == (there.text.end_tokens, there.note)


@pytest.mark.parametrize("family", [*CONFIGS, *MORE])
def test_bfloat16_from_a_folder_and_in_memory(family: str, tmp_path: Path) -> None:
    """The same bits either way, and as near to float32 as the library comes to it."""
    source = make(family)
    source.save_pretrained(tmp_path / "it")
    folder = ag.open(f"hf:{tmp_path / 'it'}", dtype="bfloat16")
    assert ag.open(f"hf:{tmp_path / 'it'}?dtype=bfloat16").weights_sha256 == folder.weights_sha256
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "it", dtype=torch.bfloat16)
    memory = open_model_object(half, "mine")
    assert memory.dtype == folder.dtype == torch.bfloat16
    assert torch.equal(folder.run(TOKENS)[0], memory.run(TOKENS)[0])
    with torch.no_grad():
        exact, theirs = source(TOKENS).logits, half(TOKENS).logits
    spread = float((theirs.float() - exact).abs().mean())
    assert float((folder.run(TOKENS)[0].float() - exact).abs().mean()) < 1.5 * spread


def test_another_float_type_than_its_own() -> None:
    ours = open_model_object(make("llama"), "mine", dtype=torch.float64)
    assert ours.dtype == torch.float64
    assert closeness(ours.run(TOKENS)[0].float(), make("llama")(TOKENS).logits.detach()) < 1e-5
    assert open_model_object(make("llama").half(), "mine").dtype == torch.float16


def test_tokenizers_of_every_kind() -> None:
    source, made = make("gpt2"), tokenizer()
    for kind in (made, made.backend_tokenizer):
        assert open_model_object(source, "mine", kind).to_tokens("The").tolist() == [made("The")["input_ids"]]
    assert open_model_object(source, "mine", Letters("abc")).to_tokens("cab").tolist() == [[2, 0, 1]]
    assert open_model_object(source, "mine").to_tokens("5 6").tolist() == [[5, 6]]
    assert ag.open(source, tokenizer="abc").to_tokens("cab").tolist() == [[2, 0, 1]]
    with pytest.raises(SubjectError, match=r"tokenizer=3 is no tokenizer: give one of transformers"):
        open_model_object(source, "mine", 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about its own parts
def test_a_compiled_model_is_the_model_inside() -> None:
    source = make("gemma 2")
    with torch.no_grad():
        theirs = source(TOKENS).logits
    assert closeness(ag.open(torch.compile(source)).run(TOKENS)[0], theirs) < 1e-5


# ---------------------------------------------------------------------- refused


def another_activation() -> Any:
    source = make("gpt2")
    source.transformer.h[1].mlp.act = torch.nn.Tanh()
    return source


def one_more_weight() -> Any:
    source = make("gpt2")
    source.transformer.h[0].attn.c_attn.lora_A = torch.nn.Linear(24, 2)
    return source


def wrapped() -> Any:
    source = make("llama")
    attention = source.model.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj)
    return source


def without_a_bias(family: str) -> Any:
    source = make(family)
    for name, module in source.named_modules():
        if name.endswith(("h.0.attn.c_attn", "layers.0.self_attn.q_proj")):
            module.bias = None
    return source


def on_meta() -> Any:
    with torch.device("meta"):
        return GPT2LMHeadModel(CONFIGS["gpt2"])


SMALL = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)
REFUSED = {
    "another activation": (another_activation, "its logits differ from those of transformers"),
    "one more weight": (one_more_weight, r"weights .*lora_A\.bias.*lora_A\.weight are none of a plain GPT2LMHeadModel"),
    "a wrapped part": (wrapped, r"weights .*q_proj\.0\.weight are none of a plain LlamaForCausalLM"),
    "a bias too few": (lambda: without_a_bias("gpt2"), "not a plain GPT2LMHeadModel: it has no weight .*c_attn.bias"),
    "a bias too few, renamed": (lambda: without_a_bias("llama 3"), "is not a plain LlamaForCausalLM: .*attn.q.bias"),
    "nothing loaded": (on_meta, "its weights are not loaded"),
    "no logits": (lambda: GPT2Model(SMALL), "a GPT2Model has no logits: give the model for causal language"),
    "a classifier": (lambda: GPT2ForSequenceClassification(SMALL), "GPT2ForSequenceClassification has no logits"),
    "another family": (
        lambda: AutoModelForCausalLM.from_config(BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=9)),
        "the architecture 'bloom' is not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_no_plain_model_is_refused_in_one_line(how: str) -> None:
    made, words = REFUSED[how]
    source = made()
    modes = [module.training for module in source.modules()]
    with pytest.raises(SubjectError, match=words) as refused:
        open_model_object(source, "mine")
    assert "\n" not in str(refused.value)
    assert [module.training for module in source.modules()] == modes
