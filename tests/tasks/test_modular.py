"""Modular arithmetic, held to Python's own."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algoscope.config import ModelConfig, parse_config
from algoscope.core.errors import ConfigError, UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.networks.transformer import Transformer
from algoscope.recipes.addition import add3
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.modular import Modular
from algoscope.tasks.table import TASKS

TASK = Modular()
CPU = torch.device("cpu")
PYTHON = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SIGNS = tuple(PYTHON)


def tasks() -> st.SearchStrategy[Modular]:
    return st.builds(Modular, p=st.integers(2, 1000), operation=st.sampled_from(SIGNS))


def text_of(task: Modular, a: int, b: int) -> str:
    return task.decode(task.sequences(torch.tensor([a]), torch.tensor([b]))[0].tolist())


@given(tasks(), st.data())
def test_sequence_is_what_python_computes(task: Modular, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, task.p - 1)) for _ in "ab")
    answer = PYTHON[task.operation](a, b) % task.p
    text = text_of(task, a, b)
    assert text == f"{a}{task.operation}{b}={answer}"
    assert task.expected(f"{a}{task.operation}{b}") == str(answer)
    assert task.encode(text) == [a, task.p, b, task.p + 1, answer]
    assert task.decode(task.encode(text)) == text
    assert [x.item() for x in task.operands(torch.tensor([task.encode(text)]))] == [a, b]


@given(tasks(), st.data())
def test_the_place_of_an_input_is_its_key(task: Modular, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, task.p - 1)) for _ in "ab")
    tokens = task.at(torch.tensor([a * task.p + b]))
    assert task.decode(tokens[0, :4].tolist()) == f"{a}{task.operation}{b}="
    assert task.keys(tokens).item() == a * task.p + b


@pytest.mark.parametrize("sign", SIGNS)
def test_the_domain_holds_every_pair_once_in_lexicographic_order(sign: str) -> None:
    task = Modular(p=11, operation=sign)
    tokens = task.at(torch.arange(task.domain_size))
    pairs = [(a, b) for a in range(11) for b in range(11)]
    assert [(row[0], row[2]) for row in tokens.tolist()] == pairs
    assert [row[4] for row in tokens.tolist()] == [PYTHON[sign](a, b) % 11 for a, b in pairs]


def test_sizes_and_parts() -> None:
    assert (TASK.n_ctx, TASK.prompt_length, TASK.d_vocab, TASK.domain_size) == (5, 4, 115, 12_769)
    assert TASK.answer_slice == slice(3, 4)
    assert TASK.ordinals == tuple(str(n) for n in range(113))
    assert TASK.used_tokens == (*TASK.ordinals, "+", "=")
    read = TASK.encode("57+80=24")[:-1]
    parts = {name: TASK.decode(read[part]) for name, part in TASK.parts.items()}
    assert parts == {"first operand": "57", "+": "+", "second operand": "80", "=": "="}


@given(tasks(), st.integers(0, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_draws_are_inputs_with_their_right_answers(task: Modular, n: int, hard_share: float, seed: int) -> None:
    tokens = task.sample(n, seeded(CPU, seed), hard_share)
    assert tokens.shape == (n, 5)
    for a, sign, b, equals, answer in tokens.tolist():
        assert (task.vocabulary[sign], task.vocabulary[equals]) == (task.operation, "=")
        assert max(a, b) < task.p
        assert answer == PYTHON[task.operation](a, b) % task.p


@pytest.mark.parametrize("hard_share", [0.0, 1.0])
def test_draws_are_uniform_and_no_input_is_a_hard_one(hard_share: float) -> None:
    task = Modular(p=5)
    counts = torch.bincount(task.keys(task.sample(50_000, seeded(CPU, 3), hard_share)), minlength=25)
    assert (counts / 50_000).tolist() == pytest.approx([1 / 25] * 25, abs=0.005)


def test_edge_cases_are_the_ones_people_try() -> None:
    shown = [TASK.decode(row) for row in TASK.edge_inputs().tolist()]
    assert shown == ["0+0=0", "0+112=112", "112+1=0", "112+112=111", "56+56=112", "56+57=0", "1+1=2"]


@given(tasks())
def test_edge_cases_are_inputs_at_every_modulus(task: Modular) -> None:
    tokens = task.edge_inputs()
    assert torch.equal(tokens, task.at(task.keys(tokens)))
    assert int(task.keys(tokens).max()) < task.domain_size


@pytest.mark.parametrize(("sign", "wraps"), [("+", 113 * 112 // 2), ("-", 113 * 112 // 2), ("*", None)])
def test_classes_over_the_whole_domain(sign: str, wraps: int | None) -> None:
    task = Modular(operation=sign)
    tokens = task.at(torch.arange(task.domain_size))
    by_wrap = [list(task.class_names("wrap"))[i] for i in task.class_of(tokens, "wrap").tolist()]
    by_order = [list(task.class_names("order"))[i] for i in task.class_of(tokens, "order").tolist()]
    for (a, _, b, _, _), one, other in zip(tokens.tolist(), by_wrap, by_order, strict=True):
        assert one == ("plain" if 0 <= PYTHON[sign](a, b) < 113 else "wraps")
        assert other == ("less" if a < b else "equal" if a == b else "greater")
    if wraps is not None:  # of 113 x 113 pairs: a + b >= p, or a < b
        assert by_wrap.count("wraps") == wraps


@given(tasks(), st.data())
def test_variables_are_the_result_and_what_is_left_of_it(task: Modular, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, task.p - 1)) for _ in "ab")
    found = task.variables_of(task.sequences(torch.tensor([a]), torch.tensor([b])))
    result = PYTHON[task.operation](a, b)
    expected = {"result": result, "wraps": int(result not in range(task.p)), "answer": result % task.p}
    assert {name: values.tolist() for name, values in found.items()} == {k: [[v]] for k, v in expected.items()}


def test_prompts_are_read_as_typed() -> None:
    assert TASK.prompt(" 5 + 8 ") == TASK.prompt("005+8=") == "5+8="
    assert Modular(operation="-").prompt("5-8") == "5-8="
    assert Modular(operation="*").prompt("5*8") == "5*8="


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("12a+4", ["'a'", "character 3"]),
        ("113+1", ["113", "below 113", "0 to 112"]),
        ("1+" + "9" * 5000, ["below 113"]),
        ("5-8", ["'-'", "'+'", "56+112"]),
        ("12", ["'12'", "56+112"]),
        ("1+2+3", ["'1+2+3'", "56+112"]),
        ("", ["''", "56+112"]),
        ("-1+5", ["'-'", "character 1"]),
    ],
)
def test_text_that_is_no_prompt_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(VocabularyError) as raised:
        TASK.prompt(text)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_a_number_that_is_no_token_is_not_read_as_two() -> None:
    with pytest.raises(VocabularyError, match="'113' at character 4 of"):
        TASK.encode("57+113=")
    with pytest.raises(VocabularyError, match="'13' at character 1"):
        Modular(p=7).encode("13+1=")
    with pytest.raises(VocabularyError, match="'007'"):
        TASK.encode("007+1=")


def test_an_error_shows_the_two_ends_of_a_long_vocabulary() -> None:
    with pytest.raises(VocabularyError) as raised:
        TASK.encode("x")
    assert str(raised.value).endswith("0 1 2 3 4 5 6 7 8 9 ... 105 106 107 108 109 110 111 112 + =")


def test_an_untrained_model_answers_with_one_token() -> None:
    cfg = ModelConfig(d_vocab=TASK.d_vocab, n_ctx=TASK.n_ctx, d_model=8, n_layers=1)
    torch.manual_seed(0)
    subject = Subject("untrained", Transformer(cfg), TASK)
    logits = subject(subject.to_tokens("5+8="))[0, -1]
    assert subject.generate("5+8") == TASK.vocabulary[int(logits.argmax())]
    assert subject.lay_out("5+8").tokens.shape == (1, 4)
    assert subject.answer_logits(subject.to_tokens("5+8=13")).shape == (1, 1, 115)


def test_a_run_of_it_survives_json_and_takes_its_sizes_from_it() -> None:
    plain = add3().model_dump() | {"task": {"kind": "modular", "p": 7, "operation": "*"}, "model": {"d_model": 16}}
    config = parse_config(plain)
    assert config.task == Modular(p=7, operation="*")
    assert (config.model.d_vocab, config.model.n_ctx) == (9, 5)
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "modular", "p": 1}, ["task.p:", "2", "not 1"]),
        ({"kind": "modular", "operation": "/"}, ["task.operation:", "'+', '-' or '*'", "'/'"]),
        ({"kind": "modular", "n_digits": 3}, ["task.n_digits:", "no such field"]),
        ({"kind": "modulo"}, ["task:", "'modulo'", *TASKS]),
        ({"p": 5}, ["task:", "'kind'"]),
        (5, ["task:", "5"]),
    ],
)
def test_a_task_that_is_none_is_named_as_the_config_names_it(task: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(add3().model_dump() | {"task": task})
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_in_the_table_is_one_that_a_config_takes(name: str) -> None:
    task = TASKS.load(name)()
    assert task.kind == name
    config = parse_config(add3().model_dump() | {"task": {"kind": name}, "model": {}, "data": {}})
    assert config.task == task


def test_unknown_class_scheme_is_named() -> None:
    for ask in (TASK.class_names, lambda by: TASK.class_of(TASK.edge_inputs(), by)):
        with pytest.raises(UnknownNameError, match=r"wrpa.*wrap"):
            ask("wrpa")


@pytest.mark.parametrize(
    ("form", "prompt", "whole", "tokens"),
    [("a+b=", "57+80=", "57+80=24", [57, 113, 80, 114, 24]), ("ab=", "57 80=", "57 80=24", [57, 80, 113, 24]),
     ("ab", "57 80", "57 80 24", [57, 80, 24])],
)  # fmt: skip
def test_the_forms_of_a_prompt(form: str, prompt: str, whole: str, tokens: list[int]) -> None:
    task = Modular(form=form)
    assert [task.prompt(text) for text in ("57+80", " 57 + 80=", "57 80", prompt)] == [prompt] * 4
    assert task.expected("057 80") == "24"
    assert task.sequence("057 80") == tokens
    assert task.decode(tokens) == whole
    assert task.encode(whole) == tokens
    assert task.sequences(torch.tensor([57]), torch.tensor([80])).tolist() == [tokens]
    assert (task.d_vocab, task.n_ctx) == (113 + len(tokens) - 3, len(tokens))
    read = {name: task.decode(tokens[part]) for name, part in task.parts.items()}
    assert read["first operand"] + read["second operand"] == "5780"
    assert task.answer_slice == slice(len(tokens) - 2, len(tokens) - 1)
    for text in ("57-80", "5780", "57 113", "57 80 24 1"):
        with pytest.raises(VocabularyError):
            task.prompt(text)
