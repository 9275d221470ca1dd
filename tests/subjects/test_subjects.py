"""Subjects: names of the field, pure runs, generation with and without a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.networks.build import build
from algoscope.runs.run_folder import weights_hash
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition

TASK = Addition(n_digits=2)


def subject_of(seed: int = 0, **shape) -> Subject:
    cfg = ModelConfig(d_vocab=14, n_ctx=TASK.n_ctx, init_embed_std=1.0, **shape)
    return Subject("random", build(cfg, seed).double(), TASK)


def test_logits_and_cache_under_the_names_of_the_field() -> None:
    subject = subject_of(n_heads=2)
    tokens = subject.to_tokens(["12+34=640", "99+01=001"])
    logits, cache = subject.run_with_cache(tokens)
    assert logits.shape == (2, 9, 14)
    assert torch.equal(cache["pattern", 0], cache["blocks.0.attn.hook_pattern"])
    assert torch.equal(cache["resid_post", -1], cache["blocks.1.hook_resid_post"])
    assert cache["z", 1].shape == (2, 9, 2, 16)
    assert torch.equal(subject(tokens), subject.run(tokens)[0])


def test_a_filter_keeps_what_it_names() -> None:
    subject = subject_of()
    tokens = subject.to_tokens("12+34=")
    _, cache = subject.run_with_cache(tokens, lambda name: name.endswith("hook_pattern"))
    assert len(cache) == 2
    with pytest.raises(UnknownNameError, match="hook_pattern"):
        cache["q", 0]


@pytest.mark.parametrize("key", [("patern", 0), ("pattern", 2), "blocks.7.hook_resid_pre", ("rot_q", 0)])
def test_a_site_that_is_not_there_is_named(key) -> None:
    subject = subject_of()
    with pytest.raises(UnknownNameError):
        subject.run(subject.to_tokens("12+34="), record=[key])


@settings(max_examples=10)
@given(
    seed=st.integers(0, 99),
    positions=st.sampled_from(["learned", "sinusoidal", "rotary", "alibi", None]),
    causal=st.booleans(),
)
def test_generation_with_a_cache_equals_generation_without(seed: int, positions: str | None, causal: bool) -> None:
    subject = subject_of(seed, positions=positions, causal=causal)
    prompts = TASK.at(torch.arange(0, 10_000, 997))[:, : TASK.prompt_length]
    cached, plain = (subject.generate_tokens(prompts, 4, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_text_goes_in_and_comes_out() -> None:
    subject = subject_of()
    tokens = subject.to_tokens("12+34=64")
    assert subject.to_string(tokens[0]) == "12+34=64"
    assert subject.to_str_tokens(tokens[0])[2] == "+"
    assert subject.lay_out("1+2").tokens.shape == (1, TASK.n_ctx - 1)
    assert subject.generate("1+2") == subject.generate("01+02=", use_cache=False)


def test_a_bare_string_is_one_text() -> None:
    subject = subject_of()
    assert subject.to_tokens("12+34").shape == subject.pad("12+34")[0].shape == (1, 5)
    assert subject.generate_many("12+34") == [subject.generate("12+34")]


def test_text_that_does_not_fit_is_named() -> None:
    subject = subject_of()
    with pytest.raises(VocabularyError, match="'a'"):
        subject.to_tokens("12+a4")
    with pytest.raises(VocabularyError, match="11 tokens; the context of addition holds 10"):
        subject.to_tokens("12+34=64064")
    with pytest.raises(TaskMismatchError, match=r"\[5, 3\]"):
        subject.to_tokens(["12+34", "1+2"])


def test_nothing_asked_of_a_subject_changes_it() -> None:
    subject = subject_of()
    before = weights_hash(subject.model.state_dict())
    subject.run_with_cache(subject.to_tokens("12+34="))
    subject.generate("1+2")
    subject.to_dtype(torch.float32).model.embed.weight.add_(1)
    assert weights_hash(subject.model.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


def test_the_hash_of_the_weights_is_that_of_what_they_are_now() -> None:
    subject = subject_of()
    for _ in range(2):
        assert subject.weights_sha256 == weights_hash(subject.model.state_dict())
        subject.model.embed.weight.add_(1)


def test_a_layer_keeps_its_number_when_others_are_not_recorded(adder: Subject) -> None:
    tokens = adder.to_tokens("123+456=")
    _, everything = adder.run_with_cache(tokens)
    _, some = adder.run(tokens, record=[("z", 1)])
    torch.testing.assert_close(some["z", 1], everything["z", 1])
    torch.testing.assert_close(some["z", -1], everything["z", 1])
    with pytest.raises(UnknownNameError, match=r"recorded site.*blocks\.0"):
        some["z", 0]


def test_a_prompt_is_laid_out_once_with_both_answers() -> None:
    adder = ag.open("planted:carry-adder")
    prompt = adder.lay_out("999+1")
    assert prompt.words == (*"999+001=0001",)
    assert prompt.labels[3] == "+_3"
    assert prompt.first_answer == adder.task.prompt_length - 1
    assert prompt.got == prompt.expected == "0001<EOS>"
    assert prompt.answer == prompt.right == (0, 0, 0, 1, 12)
    assert prompt.is_right


def test_a_prompt_of_free_text_has_no_right_answer() -> None:
    prompt = ag.open("planted:induction").lay_out("abca")
    assert prompt.words == (*"abca",)
    assert prompt.first_answer == 3
    assert prompt.right is prompt.answer is prompt.is_right is None
