"""Subjects: names of the field, pure runs, generation with and without a cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import AlgoscopeError, TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.networks.build import build
from algoscope.runs.run_folder import weights_hash
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import as_label, distinct
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.strings.reversal import Reversal

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


@pytest.mark.parametrize(
    "tokens", [[1, 10, 2], (1, 10, 2), np.array([1, 10, 2]), torch.tensor([1, 10, 2]), torch.tensor([[1, 10, 2]])]
)
def test_token_ids_of_one_input_are_read_in_every_form(tokens) -> None:
    subject = subject_of()
    assert subject.to_string(tokens) == "".join(subject.to_str_tokens(tokens)) == "1+2"
    assert subject.token_labels(tokens) == ("1_0", "+_1", "2_2")
    assert subject.to_str_tokens("1+2") == ["1", "+", "2"]
    assert subject.to_string(10) == subject.to_string(torch.tensor(10)) == "+"
    assert subject.to_string([]) == ""


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([14], "token 14 is outside the 14 tokens"),
        ([1, -1], "token -1 is outside"),
        (torch.ones(2, 3).long(), r"one input are needed, not \[2, 3\]"),
        (torch.ones(3), "whole numbers"),
        ("1+2", r"not a text: give model.to_tokens"),
    ],
)
def test_what_is_no_token_of_one_input_is_one_line(tokens, words: str) -> None:
    with pytest.raises(VocabularyError, match=words):
        subject_of().to_string(tokens)


@pytest.mark.parametrize("name", ["to_tokens", "pad", "generate", "generate_many", "lay_out"])
@pytest.mark.parametrize("text", [5, b"1+2", ["1+2", 5], None, []])
def test_what_is_no_text_is_one_line(name: str, text) -> None:
    with pytest.raises(AlgoscopeError) as raised:
        getattr(subject_of(), name)(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("n_new", [-1, 2.5, "3", True])
def test_a_number_of_new_tokens_is_a_whole_number(n_new) -> None:
    with pytest.raises(AlgoscopeError, match="n_new"):
        subject_of().generate("1+2", n_new)
    assert subject_of().generate("1+2", np.int64(2)) == subject_of().generate("1+2", 2)


@pytest.mark.parametrize("token", ["+", 10, np.int64(10), torch.tensor(10)])
def test_one_token_is_a_text_or_a_number_of_any_kind(token) -> None:
    subject = subject_of()
    assert subject.to_single_token(token) == 10
    assert set(ag.lenses.logit(subject, "1+2", target=token)["target"]) == {"+"}
    with pytest.raises(AlgoscopeError, match=r"token takes .*, not True"):
        subject.to_single_token(True)


def test_labels_of_a_task_show_what_its_letters_hide() -> None:
    task = Reversal(alphabet="a\x1b\u202e\u0301\u200b\ufe0f", length=2)
    subject = Subject("hidden", build(ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx), 0), task)
    labels = subject.to_str_tokens(range(task.d_vocab))
    assert labels[:6] == ["a", "\\x1b", "\\u202e", "\\u0301", "\\u200b", "\\ufe0f"]
    assert [subject.to_single_token(label) for label in labels] == [*range(task.d_vocab)]
    assert subject.to_string([0, 1]) == "a\x1b", "text is what it is"


@given(texts=st.lists(st.text(st.sampled_from("ab\\nxu\n\x00\u202e\u0301\u200bé 京"), max_size=4), unique=True))
def test_different_texts_have_different_labels_of_one_visible_line(texts: list[str]) -> None:
    labels = distinct(texts)
    assert len(set(labels)) == len(texts)
    assert all(label and label.isprintable() for label in labels)
    assert len({as_label(text) for text in texts}) == len(texts)
    doubled = distinct([*texts, *texts])
    assert len(set(doubled)) == 2 * len(texts)


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
