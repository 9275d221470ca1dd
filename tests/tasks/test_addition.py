"""The addition task, held to Python's own arithmetic."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algoscope.core.errors import TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.groups.modular import Modular
from algoscope.tasks.strings.reversal import Reversal

TASK = Addition(n_digits=3)
PLAIN = Addition(n_digits=3, reversed=False)
operand = st.integers(0, 999)
CPU = torch.device("cpu")


def text_of(task: Addition, a: int, b: int) -> str:
    return task.decode(task.sequences(torch.tensor([a]), torch.tensor([b]))[0].tolist())


@given(operand, operand)
def test_sequence_is_the_sum_that_python_computes(a: int, b: int) -> None:
    total = f"{a + b:04d}"
    assert text_of(TASK, a, b) == f"{a:03d}+{b:03d}={total[::-1]}<EOS>"
    assert text_of(PLAIN, a, b) == f"{a:03d}+{b:03d}={total}<EOS>"
    assert TASK.expected(f"{a}+{b}") == total[::-1] + "<EOS>"


def test_published_examples() -> None:
    assert TASK.expected("123+456") == "9750<EOS>"
    assert TASK.expected("999+1") == "0001<EOS>"
    assert (TASK.n_ctx, TASK.prompt_length, TASK.d_vocab, TASK.domain_size) == (13, 8, 14, 1_000_000)


@given(st.integers(1, 18), st.data())
def test_encode_and_decode_are_inverse_at_every_width(n_digits: int, data: st.DataObject) -> None:
    task = Addition(n_digits=n_digits)
    a, b = (data.draw(st.integers(0, 10**n_digits - 1)) for _ in "ab")
    text = text_of(task, a, b)
    assert task.decode(task.encode(text)) == text
    assert text.split("=")[1] == f"{a + b:0{n_digits + 1}d}"[::-1] + "<EOS>"


@given(operand, operand)
def test_operands_are_read_back(a: int, b: int) -> None:
    first, second = TASK.operands(TASK.sequences(torch.tensor([a]), torch.tensor([b])))
    assert (first.item(), second.item()) == (a, b)


def test_enumeration_holds_every_input_once_in_order() -> None:
    task = Addition(n_digits=2)
    tokens = task.at(torch.arange(task.domain_size))
    first, second = task.operands(tokens)
    assert (first * 100 + second).tolist() == list(range(10_000))
    assert task.keys(tokens).unique().numel() == 10_000


def carries_of(a: int, b: int) -> tuple[list[int], list[int], list[int]]:
    sums, carries, digits, carry = [], [], [], 0
    for place in range(3):
        column = a // 10**place % 10 + b // 10**place % 10
        digits.append((column + carry) % 10)
        carry = (column + carry) // 10
        sums.append(column)
        carries.append(carry)
    return sums, carries, [*digits, carry]


@given(operand, operand)
def test_variables_are_those_of_column_addition(a: int, b: int) -> None:
    tokens = TASK.sequences(torch.tensor([a]), torch.tensor([b]))
    found = {name: values[0].tolist() for name, values in TASK.variables_of(tokens).items()}
    sums, carries, digits = carries_of(a, b)
    assert found == {"column_sum": sums, "carry": carries, "digit": digits}


@given(operand, operand)
def test_chain_class_is_the_longest_run_of_nines_above_a_carry(a: int, b: int) -> None:
    sums, _, _ = carries_of(a, b)
    longest = 0
    for start in range(3):
        if sums[start] >= 10:
            run = 0
            while start + run + 1 < 3 and sums[start + run + 1] == 9:
                run += 1
            longest = max(longest, run + 1)
    assert TASK.class_of(TASK.sequences(torch.tensor([a]), torch.tensor([b])), "chain").item() == longest


@given(operand, operand)
def test_operands_may_be_written_units_first(a: int, b: int) -> None:
    task = Addition(n_digits=3, operands_reversed=True)
    text = f"{f'{a:03d}'[::-1]}+{f'{b:03d}'[::-1]}="
    tokens = task.sequences(torch.tensor([a]), torch.tensor([b]))
    assert task.decode(tokens[0].tolist()) == text + f"{a + b:04d}"[::-1] + "<EOS>"
    assert task.prompt(text) == text
    assert task.expected(text) == TASK.expected(f"{a}+{b}")
    usual = TASK.sequences(torch.tensor([a]), torch.tensor([b]))
    assert task.keys(tokens).equal(TASK.keys(usual))
    assert task.class_of(tokens, "chain").equal(TASK.class_of(usual, "chain"))
    assert task.prompt("1+2") == "100+200="


@given(st.integers(19, 200), st.data())
def test_wide_sums_are_those_that_python_computes(n_digits: int, data: st.DataObject) -> None:
    task = Addition(n_digits=n_digits)
    a, b = (data.draw(st.integers(0, 10**n_digits - 1)) for _ in "ab")
    assert task.expected(f"{a}+{b}") == f"{a + b:0{n_digits + 1}d}"[::-1] + "<EOS>"


def test_wide_sums_are_drawn_and_told_apart() -> None:
    task = Addition(n_digits=50)
    tokens = task.sample(2_000, seeded(CPU, 1), 0.5)
    assert task.domain_size == 10**100
    assert len(task.keys(tokens).unique()) == 2_000
    for row in tokens[:20].tolist():
        written = task.decode(row)
        a, rest = written.split("+")
        b, total = rest.removesuffix("<EOS>").split("=")
        assert int(a) + int(b) == int(total[::-1])
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 10  # a digit beyond what 64 bits hold
    assert not task.keys(changed).eq(task.keys(tokens)).any()
    assert task.class_of(tokens, "chain").max() <= 50
    with pytest.raises(TaskMismatchError, match="50 digits exceed 64 bits"):
        task.operands(tokens)
    assert task.class_schemes == ("chain",)
    assert task.expected(task.decode(task.edge_inputs()[1, : task.prompt_length].tolist())) == "0" * 50 + "1<EOS>"


@pytest.mark.parametrize(
    ("n_digits", "draws", "keys"),
    [(3, "691bf2b3a654092c", "479897987ab6617b"), (18, "b9f11a39d33b1b75", "3442f217564ab643")],
)
def test_draws_and_keys_are_those_of_the_first_version(n_digits: int, draws: str, keys: str) -> None:
    task = Addition(n_digits=n_digits)
    tokens = task.sample(1_000, seeded(CPU, 7), 0.4)
    found = [hashlib.sha256(each.numpy().tobytes()).hexdigest()[:16] for each in (tokens, task.keys(tokens))]
    assert found == [draws, keys]


def test_class_sizes_over_the_whole_domain() -> None:
    tokens = TASK.at(torch.arange(1_000_000))
    chain = torch.bincount(TASK.class_of(tokens, "chain"))
    assert chain.tolist() == [166_375, 743_625, 85_500, 4_500]  # S0 = 55^3: column sums of nine or less
    pattern = torch.bincount(TASK.class_of(tokens, "pattern"))
    assert len(pattern) == len(TASK.class_names("pattern")) == 27
    by_name = dict(zip(TASK.class_names("pattern"), pattern.tolist(), strict=True))
    assert (by_name["sss"], by_name["999"], by_name["ccc"]) == (45**3, 10**3, 45**3)


def test_hard_draws_have_more_columns_of_nine_and_of_extreme_digits() -> None:
    def shares(hard: float) -> tuple[float, float]:
        tokens = TASK.sample(20_000, seeded(CPU, 1), hard)
        extreme = (tokens == 0) | (tokens == 9)
        both = extreme[:, :3] & extreme[:, 4:7]
        return (TASK.columns(tokens) == 9).float().mean().item(), both.float().mean().item()

    # a column is forced with chance 1/2: to nine in 2 of 3 rows, else to 0s and 9s, which make nine half of the time
    for hard in (0.0, 0.45, 1.0):
        nine = hard / 2 * (2 / 3 + 1 / 3 * 1 / 2)
        extreme = hard / 2 * (2 / 3 * 0.2 + 1 / 3)
        assert shares(hard) == pytest.approx((nine + (1 - hard / 2) * 0.1, extreme + (1 - hard / 2) * 0.04), abs=0.01)


def test_edge_cases_are_the_ones_people_try() -> None:
    first, second = TASK.operands(TASK.edge_inputs())
    expected = [(123, 456), (999, 1), (0, 0), (999, 999), (500, 500), (111, 222)]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [("12a+4", "'a'"), ("1234+1", "1234"), ("12", "12"), ("1+2+3", "1+2+3"), ("", "''"), ("-1+5", "'-'")],
)
def test_text_that_is_no_prompt_is_named(text: str, word: str) -> None:
    with pytest.raises(VocabularyError, match=f".*{word.replace('+', '[+]')}.*") as raised:
        TASK.prompt(text)
    assert "\n" not in str(raised.value)


def test_unknown_class_scheme_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"chian.*chain"):
        TASK.class_of(TASK.edge_inputs(), "chian")


def test_a_neighbour_differs_in_one_token_and_in_its_answer() -> None:
    for task, text in ((Addition(n_digits=3), "123+456"), (Modular(p=7), "3+6"), (Reversal(), "aabbc")):
        other = task.neighbour(text)
        pairs = list(zip(task.encode(task.prompt(text)), task.encode(other), strict=True))
        assert sum(left != right for left, right in pairs) == 1
        assert task.expected(other) != task.expected(text)
