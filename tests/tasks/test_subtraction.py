"""The subtraction task, held to Python's own arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algoscope.core.errors import UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.digits.subtraction import Subtraction

TASK = Subtraction(n_digits=3)
operand = st.integers(0, 999)
CPU = torch.device("cpu")


def text_of(task: Subtraction, a: int, b: int) -> str:
    return task.decode(task.sequences(torch.tensor([a]), torch.tensor([b]))[0].tolist())


@given(operand, operand)
def test_the_answer_is_the_difference_or_its_complement_below_a_nine(a: int, b: int) -> None:
    said = f"{a - b:04d}" if a >= b else "9" + f"{1000 - (b - a):03d}"
    assert text_of(TASK, a, b) == f"{a:03d}-{b:03d}={said[::-1]}<EOS>"
    assert text_of(Subtraction(n_digits=3, reversed=False), a, b) == f"{a:03d}-{b:03d}={said}<EOS>"


def test_examples() -> None:
    assert TASK.expected("456-123") == "3330<EOS>"
    assert TASK.expected("123-456") == "7669<EOS>"
    assert TASK.expected("0-0=") == "0000<EOS>"
    cases = [TASK.decode(row[: TASK.prompt_length].tolist()) for row in TASK.edge_inputs()]
    assert cases == ["456-123=", "100-001=", "000-000=", "000-999=", "500-500=", "123-456="]


def test_an_adder_can_read_it() -> None:
    adder = Addition(n_digits=3)
    for what in ("d_vocab", "n_ctx", "prompt_length", "domain_size", "answer_slice"):
        assert getattr(TASK, what) == getattr(adder, what)
    assert TASK.vocabulary[:10] == adder.vocabulary[:10]
    assert TASK.vocabulary.index("-") == adder.vocabulary.index("+")
    assert list(TASK.parts) == ["first operand", "-", "second operand", "=", "difference so far"]


@given(st.integers(1, 18), st.data())
def test_text_and_tokens_are_inverse_at_every_width(n_digits: int, data: st.DataObject) -> None:
    task = Subtraction(n_digits=n_digits)
    a, b = (data.draw(st.integers(0, 10**n_digits - 1)) for _ in "ab")
    text = text_of(task, a, b)
    assert task.decode(task.encode(text)) == text
    assert text.split("=")[1] == f"{(a - b) % 10 ** (n_digits + 1):0{n_digits + 1}d}"[::-1] + "<EOS>"


def test_it_has_what_addition_has_besides() -> None:
    task = Subtraction(n_digits=25, operands_reversed=True)
    first, second = 7 * 10**24 + 13, 4 * 10**23 + 999
    text = f"{str(first)[::-1]}-{str(second).zfill(25)[::-1]}"
    assert task.expected(text) == str(first - second).zfill(26)[::-1] + "<EOS>"
    assert task.of_width(3).significance == Addition(n_digits=3, operands_reversed=True).significance
    assert task.of_width(1).answer_names == ("units", "tens", "end")


def test_enumeration_holds_every_input_once_in_order() -> None:
    task = Subtraction(n_digits=2)
    tokens = task.at(torch.arange(task.domain_size))
    first, second = task.operands(tokens)
    assert (first * 100 + second).tolist() == list(range(10_000))
    assert task.keys(tokens).unique().numel() == 10_000


@given(operand, operand)
def test_variables_and_classes_are_those_of_written_subtraction(a: int, b: int) -> None:
    tokens = TASK.sequences(torch.tensor([a]), torch.tensor([b]))
    borrow, borrows, run, longest = 0, [], -1, -1
    for place in (1, 10, 100):
        difference = a // place % 10 - b // place % 10
        borrow = int(difference - borrow < 0)
        borrows.append(borrow)
        run = 0 if difference < 0 else run + 1 if difference == 0 and run >= 0 else -1
        longest = max(longest, run)
    found = TASK.variables_of(tokens)
    assert found["borrow"][0].tolist() == borrows
    assert "".join(map(str, found["digit"][0].tolist())) == text_of(TASK, a, b).split("=")[1].removesuffix("<EOS>")
    name = list(TASK.class_names("chain"))[int(TASK.class_of(tokens, "chain"))]
    assert name == f"S{longest + 1}"
    assert (name == "S0") == (not any(borrows))


def test_hard_draws_are_hard_and_draws_repeat() -> None:
    easy, hard = (TASK.sample(4_000, seeded(CPU, 0), hard_share=share) for share in (0.0, 1.0))
    assert torch.equal(easy, TASK.sample(4_000, seeded(CPU, 0)))
    long = [(TASK.class_of(tokens, "chain") >= 2).float().mean() for tokens in (easy, hard)]
    assert long[1] > 2 * long[0]
    for tokens in (easy, hard):
        assert torch.equal(TASK.sequences(*TASK.operands(tokens)), tokens)


@pytest.mark.parametrize(
    ("text", "words"),
    [("12+3", "'[+]'"), ("12", "write it as 456-123"), ("1234-1", "1234 .* 4 digits; the task has 3")],
)
def test_what_is_no_difference_is_one_line(text: str, words: str) -> None:
    with pytest.raises(VocabularyError, match=words):
        TASK.prompt(text)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UnknownNameError, match="pattern"):
        TASK.class_names("pattern")
