"""The reversal task, held to Python's own slicing."""

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algoscope.config import parse_config
from algoscope.core.errors import ConfigError, UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.lenses.heads.source_attention import source_attention
from algoscope.recipes.addition import add3
from algoscope.tasks.strings.reversal import Reversal
from algoscope.training.train import train
from algoscope.verdicts.certification.certify import certify

TASK = Reversal()
CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyzPADEOS0123456789+-=*^]\\.é日"


@st.composite
def tasks(draw: st.DrawFn) -> Reversal:
    """Any alphabet and length of at most 10^9 inputs."""
    alphabet = "".join(draw(st.lists(st.sampled_from(LETTERS), min_size=2, max_size=20, unique=True)))
    return Reversal(alphabet=alphabet, length=draw(st.integers(1, 6)))


def text_of(task: Reversal, letters: str) -> str:
    return task.decode(task.sequences(torch.tensor([[task.alphabet.index(x) for x in letters]]))[0].tolist())


@given(tasks(), st.data())
def test_sequence_is_the_text_and_python_s_reversal_of_it(task: Reversal, data: st.DataObject) -> None:
    letters = "".join(data.draw(st.lists(st.sampled_from(task.alphabet), min_size=task.length, max_size=task.length)))
    text = text_of(task, letters)
    assert text == f"{letters}|{letters[::-1]}<EOS>"
    assert task.decode(task.encode(text)) == text
    assert len(task.encode(text)) == task.n_ctx
    assert task.prompt(f" {letters} ") == task.prompt(letters + "|") == f"{letters}|"
    assert task.expected(letters) == letters[::-1] + "<EOS>"


@given(tasks(), st.data())
def test_the_place_of_an_input_is_its_number_in_the_alphabet(task: Reversal, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, task.domain_size - 1))
    tokens = task.at(torch.tensor([index]))
    number = 0
    for letter in tokens[0, : task.length].tolist():
        number = number * len(task.alphabet) + letter
    assert number == index == task.keys(tokens).item()


def test_the_domain_holds_every_input_once_in_lexicographic_order() -> None:
    task = Reversal(alphabet="xyz", length=4)
    tokens = task.at(torch.arange(task.domain_size))
    texts = [task.decode(row) for row in tokens[:, :4].tolist()]
    assert texts == ["".join(letters) for letters in product("xyz", repeat=4)]
    assert task.keys(tokens).tolist() == list(range(81))


def test_sizes_and_parts() -> None:
    assert (TASK.n_ctx, TASK.prompt_length, TASK.d_vocab, TASK.domain_size) == (12, 6, 11, 32_768)
    assert TASK.answer_slice == slice(5, 11)
    assert TASK.ordinals == tuple("abcdefgh")
    assert TASK.used_tokens == (*"abcdefgh", "|", "<EOS>")
    read = TASK.encode("abcde|edcba<EOS>")[:-1]
    parts = {name: TASK.decode(read[part]) for name, part in TASK.parts.items()}
    assert parts == {"letters": "abcde", "|": "|", "reversed so far": "edcba"}


@given(st.integers(0, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_draws_are_inputs_with_their_right_answers(n: int, hard_share: float, seed: int) -> None:
    tokens = TASK.sample(n, seeded(CPU, seed), hard_share)
    assert tokens.shape == (n, TASK.n_ctx)
    for row in tokens.tolist():
        letters = TASK.decode(row[:5])
        assert TASK.decode(row) == f"{letters}|{letters[::-1]}<EOS>"


def test_hard_draws_are_written_in_two_letters_at_most() -> None:
    def few(hard_share: float) -> float:
        tokens = TASK.sample(20_000, seeded(CPU, 1), hard_share)
        return sum(len(set(row)) <= 2 for row in tokens[:, :5].tolist()) / 20_000

    by_chance = (8 + 28 * (2**5 - 2)) / 8**5  # words in one letter, and in exactly two
    for hard_share in (0.0, 0.5, 1.0):
        assert few(hard_share) == pytest.approx(hard_share + (1 - hard_share) * by_chance, abs=0.01)


def test_uniform_draws_use_every_letter_at_every_place_alike() -> None:
    tokens = TASK.sample(40_000, seeded(CPU, 2))
    for place in range(5):
        share = torch.bincount(tokens[:, place], minlength=8) / 40_000
        assert share.tolist() == pytest.approx([1 / 8] * 8, abs=0.01)


def test_edge_cases_are_the_ones_people_try() -> None:
    shown = [TASK.decode(row[:5]) for row in TASK.edge_inputs().tolist()]
    assert shown == ["abcde", "edcba", "aaaaa", "hhhhh", "ababa", "abcba", "aaaab", "baaaa"]
    for row in TASK.edge_inputs().tolist():
        assert row[6:11] == row[:5][::-1]


@given(tasks())
def test_edge_cases_fit_every_alphabet_and_length(task: Reversal) -> None:
    assert int(task.edge_inputs()[:, : task.length].max()) < len(task.alphabet)


def test_classes_over_the_whole_domain() -> None:
    tokens = TASK.at(torch.arange(TASK.domain_size))
    distinct = list(TASK.class_names("distinct"))
    palindrome = list(TASK.class_names("palindrome"))
    by_distinct = [distinct[i] for i in TASK.class_of(tokens, "distinct").tolist()]
    by_palindrome = [palindrome[i] for i in TASK.class_of(tokens, "palindrome").tolist()]
    for row, one, other in zip(tokens[:, :5].tolist(), by_distinct, by_palindrome, strict=True):
        assert one == f"D{len(set(row))}"
        assert other == ("palindrome" if row == row[::-1] else "other")
    assert by_palindrome.count("palindrome") == 8**3
    assert len(distinct) == 5 == len(set(by_distinct))
    assert list(Reversal(alphabet="ab", length=5).class_names("distinct")) == ["D1", "D2"]


@given(tasks(), st.data())
def test_variables_say_where_each_letter_comes_from(task: Reversal, data: st.DataObject) -> None:
    tokens = task.at(torch.tensor([data.draw(st.integers(0, task.domain_size - 1))]))
    found = {name: values[0].tolist() for name, values in task.variables_of(tokens).items()}
    row = tokens[0].tolist()
    assert found["source"] == list(range(task.length))[::-1]
    assert found["letter"] == [row[source] for source in found["source"]]
    assert found["letter"] == row[task.prompt_length : -1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abxde", ["'x'", "character 3", "a b c d e f g h |"]),
        ("abcd", ["'abcd'", "4 letters", "5"]),
        ("abcdefgh", ["8 letters", "5"]),
        ("abcde|e", ["'abcde|e'", "5 letters of abcdefgh", "abcde"]),
        ("ab cde", ["' '", "character 3"]),
        ("", ["''", "abcde"]),
        ("<PAD>", ["'<PAD>'", "abcde"]),
    ],
)
def test_text_that_is_no_prompt_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(VocabularyError) as raised:
        TASK.prompt(text)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"alphabet": "a"}, "at least 2"),
        ({"alphabet": "abca"}, "'a' more than once"),
        ({"alphabet": "ab|"}, "'|'"),
        ({"alphabet": "ab<"}, "'<'"),
        ({"alphabet": "a b"}, "' '"),
        ({"length": 0}, "greater than or equal to 1"),
        ({"length": 21}, "2^63"),
    ],
)
def test_a_task_that_cannot_be_written_is_refused(fields: dict, word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Reversal(**fields)
    assert word in str(raised.value)
    plain = add3().model_dump() | {"task": {"kind": "reversal", **fields}}
    with pytest.raises(ConfigError) as raised_of_config:
        parse_config(plain)
    assert word in str(raised_of_config.value)
    assert str(raised_of_config.value).startswith("task")
    assert "\n" not in str(raised_of_config.value)


def test_the_longest_task_still_counts_right() -> None:
    task = Reversal(length=20)
    last = task.at(torch.tensor([8**20 - 1]))
    assert task.decode(last[0].tolist()) == "h" * 20 + "|" + "h" * 20 + "<EOS>"
    assert task.keys(last).item() == 8**20 - 1


def test_a_run_of_it_survives_json_and_takes_its_sizes_from_it() -> None:
    plain = add3().model_dump() | {"task": {"kind": "reversal", "alphabet": "abc", "length": 3}}
    plain["model"] = {"d_model": 16}
    config = parse_config(plain)
    assert config.task == Reversal(alphabet="abc", length=3)
    assert (config.model.d_vocab, config.model.n_ctx) == (6, 8)
    assert parse_config(config.model_dump(mode="json")) == config


def test_unknown_class_scheme_is_named() -> None:
    for ask in (TASK.class_names, lambda by: TASK.class_of(TASK.edge_inputs(), by)):
        with pytest.raises(UnknownNameError, match=r"distnict.*distinct"):
            ask("distnict")


# ---------------------------------------------------------------------- the recipe


@pytest.mark.parametrize("seed", [0, 1])
def test_the_recipe_reverses_every_input(seed: int, trained_seed: int, tmp_path: Path) -> None:
    run = train("reverse5", seed=trained_seed + seed, runs_dir=tmp_path, progress=False)
    assert (run.config.task, run.summary.parameters) == (TASK, 4_960)
    assert run.summary.steps < run.config.train.steps
    verdict = certify(run)
    assert (verdict["wrong"], verdict["domain"]["checked"], verdict["domain"]["method"]) == (0, 32_768, "exhaustive")
    found = source_attention(run)
    assert (found["verdict"], found["causal"]) == ("by position alone", "carried")
