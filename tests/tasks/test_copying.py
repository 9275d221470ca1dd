"""The copying task, held to Python's own strings, and its floor to a posterior that is counted out."""

import math
from collections import Counter, defaultdict
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import algoscope as ag
from algoscope.config import parse_config
from algoscope.core.errors import ConfigError, UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.networks.parameters import count_parameters
from algoscope.recipes.addition import add3
from algoscope.recipes.copying import copy8, copy8_fresh
from algoscope.tasks.strings.copying import Copying

TASK = Copying()
CPU = torch.device("cpu")


@st.composite
def tasks(draw: st.DrawFn, most: int = 3000) -> Copying:
    """Any task of few patterns."""
    k, shortest = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    longest = draw(st.integers(shortest, 7).filter(lambda n: k**n <= most))
    prompt = longest if shortest == longest else 2 * longest - 2
    length = draw(st.integers(max(prompt + 1, 2), prompt + 15))
    return Copying(n_symbols=k, length=length, shortest=shortest, longest=longest)


def written(pattern: str, length: int) -> str:
    return (pattern * length)[:length]


def patterns(task: Copying) -> list[str]:
    """Every pattern of every allowed length."""
    return ["".join(letters) for n in task.lengths for letters in product(task.vocabulary, repeat=n)]


def everything(task: Copying) -> list[str]:
    letters = task.vocabulary
    return ["".join(letters[i] for i in row) for row in task.at(torch.arange(task.domain_size)).tolist()]


# ---------------------------------------------------------------------- the domain


@given(tasks())
def test_the_domain_is_every_sequence_once_in_lexicographic_order(task: Copying) -> None:
    sequences = sorted({written(pattern, task.length) for pattern in patterns(task)})
    assert everything(task) == sequences
    assert task.domain_size == len(sequences)


def test_the_domain_has_37_360_sequences() -> None:
    assert TASK.domain_size == 37_360 == 8**3 + 8**4 + 8**5 - 2 * 8  # one letter throughout is written in three ways
    assert everything(TASK) == sorted({written(pattern, 24) for pattern in patterns(TASK)})


@given(tasks())
def test_the_prompt_decides_the_rest_and_a_shorter_one_does_not(task: Copying) -> None:
    endless = {written(pattern, 4 * task.longest) for pattern in patterns(task)}
    for n, decides in ((task.prompt_length, True), (task.prompt_length - 1, False)):
        assert (len({sequence[:n] for sequence in endless}) == len(endless)) is decides


@given(tasks())
def test_keys_number_the_domain_in_its_order(task: Copying) -> None:
    tokens = task.at(torch.arange(task.domain_size))
    keys = task.keys(tokens).tolist()
    assert keys == list(range(task.domain_size))
    assert torch.equal(task.at(torch.tensor([task.domain_size - 1, 0])), tokens[[-1, 0]])


LONG = Copying(n_symbols=26, shortest=4, longest=13, length=64)


@given(st.lists(st.integers(0, LONG.domain_size - 1), min_size=2, max_size=5, unique=True))
def test_a_domain_too_large_to_list_is_numbered_too(places: list[int]) -> None:
    index = torch.tensor([0, *sorted(places), LONG.domain_size - 1])
    tokens = LONG.at(index)
    texts = [LONG.decode(row) for row in tokens.tolist()]
    assert texts == sorted(texts)
    assert LONG.keys(tokens).tolist() == index.tolist()
    for text in texts:
        assert LONG.prompt(text) + LONG.expected(text) == text
    assert (texts[0], texts[-1]) == ("a" * 64, "z" * 64)


def test_the_size_of_a_domain_too_large_to_list() -> None:
    """Of each period, the sequences that have no smaller one: those of 12 letters repeat neither 4 nor 6."""
    own: dict[int, int] = {}
    for n in range(1, 14):
        own[n] = 26**n - sum(own[d] for d in own if n % d == 0)
    assert LONG.domain_size == sum(own.values())
    with pytest.raises(ConfigError, match="too many"):
        _ = LONG.irreducible_losses
    assert LONG.irreducible_loss == pytest.approx((math.log(10) + (8.5 - 1) * math.log(26)) / 63, rel=1e-4)


def test_sizes_and_parts() -> None:
    assert (TASK.n_ctx, TASK.prompt_length, TASK.d_vocab) == (24, 8, 8)
    assert TASK.answer_slice == slice(7, 23)
    assert TASK.vocabulary == TASK.ordinals == TASK.used_tokens == tuple("abcdefgh")
    read = "abcdeabcdeabcdeabcdeabc"
    assert {name: read[part] for name, part in TASK.parts.items()} == {
        "beginning": "abcdeabc",
        "copied so far": "deabcdeabcdeabc",
    }


def test_the_recipe_has_exactly_101_632_parameters() -> None:
    for recipe in (copy8, copy8_fresh):
        assert sum(count_parameters(recipe().model).values()) == 101_632
    config = copy8()
    assert config.data.n_train == 2_000
    assert config.train.steps == 100 * math.ceil(2_000 / config.train.batch)


# ---------------------------------------------------------------------- text


@given(tasks(), st.data())
def test_a_pattern_or_any_beginning_that_decides_means_its_sequence(task: Copying, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(patterns(task)))
    sequence = written(pattern, task.length)
    begins = data.draw(st.integers(task.prompt_length, task.length))
    for text in (pattern, f" {pattern}\n", sequence[:begins] if begins > task.longest else pattern):
        assert task.prompt(text) == sequence[: task.prompt_length]
        assert task.expected(text) == sequence[task.prompt_length :]
    assert task.prompt(task.prompt(pattern)) == task.prompt(pattern)


@given(tasks(), st.data())
def test_a_neighbour_is_another_pattern_of_the_same_length_with_another_answer(
    task: Copying, data: st.DataObject
) -> None:
    text = data.draw(st.sampled_from(patterns(task)))
    other = task.neighbour(text)
    assert task.valid(other)
    assert task.expected(other) != task.expected(text)
    assert any(
        sum(a != b for a, b in zip(one, another, strict=True)) == 1
        for n in task.lengths
        for one, another in [(task.prompt(text)[:n], other[:n])]
        if written(another, task.prompt_length) == other
    )


def test_neighbours_of_patterns_people_try() -> None:
    assert TASK.neighbour("abcde") == "abcdfabc"
    assert TASK.neighbour("abc") == "abdabdab"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab", ["'ab'", "2 letters", "3 to 5"]),
        ("", ["''", "0 letters"]),
        ("abcdefg", ["'abcdefg'", "repeats no pattern of 3 to 5 letters", "abcde"]),
        ("aaabaa", ["'aaabaa'", "several", "8 letters"]),
        ("abx", ["'x'", "character 3", "a b c d e f g h"]),
        ("abc" * 9, ["27 tokens", "24"]),
    ],
)
def test_text_that_means_no_sequence_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(VocabularyError) as raised:
        TASK.prompt(text)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- draws


@given(st.integers(0, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_draws_are_inputs_with_their_right_answers(n: int, hard_share: float, seed: int) -> None:
    tokens = TASK.sample(n, seeded(CPU, seed), hard_share)
    assert tokens.shape == (n, 24)
    for row in tokens.tolist():
        text = TASK.decode(row)
        assert TASK.prompt(text) + TASK.expected(text) == text


def test_draws_have_the_lengths_and_letters_alike() -> None:
    tokens = TASK.sample(60_000, seeded(CPU, 2))
    smallest = torch.bincount(TASK.class_of(tokens, "period"), minlength=5) / 60_000
    expected = [(8**-2 + 8**-3 + 8**-4) / 3, (8**-2 - 8**-3) / 3, (1 - 8**-2) / 3, (1 - 8**-2) / 3, (1 - 8**-4) / 3]
    assert smallest.tolist() == pytest.approx(expected, abs=0.008)
    for place in (0, 4, 23):
        assert (torch.bincount(tokens[:, place], minlength=8) / 60_000).tolist() == pytest.approx(
            [1 / 8] * 8, abs=0.006
        )


def test_hard_draws_are_written_in_two_letters_at_most() -> None:
    tokens = TASK.sample(2_000, seeded(CPU, 1), hard_share=1.0)
    assert max(len(set(row)) for row in tokens.tolist()) == 2
    assert max(len(set(row)) for row in TASK.sample(2_000, seeded(CPU, 1)).tolist()) == 5


def test_edge_cases_are_the_ones_people_try() -> None:
    shown = [TASK.decode(row[:8]) for row in TASK.edge_inputs().tolist()]
    tried = ["abcde", "abc", "aaaaa", "hhhhh", "aaaab", "abcba", "edcba", "abab"]
    assert shown == [written(pattern, 8) for pattern in tried]


@given(tasks())
def test_edge_cases_are_inputs_of_every_task(task: Copying) -> None:
    for row in task.edge_inputs().tolist():
        text = task.decode(row)
        assert task.prompt(text) + task.expected(text) == text


# ---------------------------------------------------------------------- the floor


def posterior_losses(task: Copying) -> list[float]:
    """For each predicted token, the mean of -ln P(token | tokens before), by counting all draws with their weights."""
    weight = dict.fromkeys(everything(task), 0.0)
    for pattern in patterns(task):
        weight[written(pattern, task.length)] += 1 / len(task.lengths) / task.n_symbols ** len(pattern)
    losses = []
    for place in range(1, task.length):
        begins, goes_on = defaultdict(float), defaultdict(float)
        for text, chance in weight.items():
            begins[text[:place]] += chance
            goes_on[text[: place + 1]] += chance
        losses.append(sum(chance * math.log(begins[text[:-1]] / chance) for text, chance in goes_on.items()))
    return losses


@pytest.mark.parametrize(
    "fields",
    [
        {"n_symbols": 2, "shortest": 1, "longest": 3, "length": 8},
        {"n_symbols": 3, "shortest": 2, "longest": 4, "length": 9},
        {"n_symbols": 2, "shortest": 5, "longest": 7, "length": 15},
        {"n_symbols": 5, "shortest": 3, "longest": 3, "length": 7},
    ],
)
def test_the_floor_is_that_of_the_counted_posterior(fields: dict) -> None:
    task = Copying(**fields)
    expected = posterior_losses(task)
    assert task.irreducible_losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert task.irreducible_loss == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_the_floor_of_the_standard_task() -> None:
    """The chain rule: the entropy of a draw less that of its first letter, spread over 23 predictions."""
    weights = Counter()
    for pattern in patterns(TASK):
        weights[written(pattern, 24)] += 8 ** (5 - len(pattern))  # of 3 * 8^5
    assert sum(weights.values()) == 3 * 8**5
    entropy = -math.fsum(n / (3 * 8**5) * math.log(n / (3 * 8**5)) for n in weights.values())
    assert TASK.irreducible_loss == pytest.approx((entropy - math.log(8)) / 23, abs=1e-11)
    assert TASK.irreducible_loss == pytest.approx(0.318890, abs=1e-6)
    assert TASK.irreducible_losses[:2].tolist() == pytest.approx([math.log(8)] * 2, abs=1e-11)
    assert TASK.irreducible_losses[7:].abs().max() < 1e-11


@given(tasks(most=300), st.integers(0, 2**31))
def test_no_predictor_has_a_smaller_loss_than_the_surprisal(task: Copying, seed: int) -> None:
    tokens = task.at(torch.arange(task.domain_size))
    noise = torch.randn(*tokens[:, 1:].shape, generator=seeded(CPU, seed), dtype=torch.double).abs()
    chance, surprisal = task.chance(tokens), task.surprisal(tokens)
    assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
    totals = defaultdict(float)  # another predictor, as far as the sequences that there are tell of it
    for row, extra in zip(tokens.tolist(), noise.tolist(), strict=True):
        for place in range(1, len(row)):
            totals[tuple(row[: place + 1])] = max(totals[tuple(row[: place + 1])], extra[place - 1])
    other = torch.zeros_like(surprisal)
    for i, row in enumerate(tokens.tolist()):
        for place in range(1, len(row)):
            rivals = sum(totals[(*row[:place], token)] for token in range(task.n_symbols))
            other[i, place - 1] = -math.log(totals[tuple(row[: place + 1])] / rivals)
    assert float(chance @ other.sum(dim=1)) >= float(chance @ surprisal.sum(dim=1)) - 1e-9


def test_what_cannot_follow_has_infinite_surprisal() -> None:
    tokens = torch.tensor([TASK.encode("abcabcabcabcabcabcabcabd")])
    assert TASK.surprisal(tokens)[0, -1] == math.inf
    assert TASK.surprisal(tokens)[0, :-1].isfinite().all()


# ---------------------------------------------------------------------- classes


def slow_context(pattern: str) -> int:
    """How many letters it takes to tell the next, from its definition."""
    text = pattern * 4
    for n in range(len(pattern) + 1):
        follows = defaultdict(set)
        for place in range(len(pattern), 2 * len(pattern)):
            follows[text[place - n : place]].add(text[place])
        if all(len(letters) == 1 for letters in follows.values()):
            return n
    raise AssertionError(pattern)


def test_classes_over_the_whole_domain() -> None:
    tokens = TASK.at(torch.arange(TASK.domain_size))
    period, context = (list(TASK.class_names(by)) for by in ("period", "context"))
    by_period = [period[i] for i in TASK.class_of(tokens, "period").tolist()]
    by_context = [context[i] for i in TASK.class_of(tokens, "context").tolist()]
    for row, one, other in zip(tokens.tolist(), by_period, by_context, strict=True):
        text = "".join("abcdefgh"[i] for i in row)
        smallest = next(n for n in range(1, 6) if written(text[:n], 24) == text)
        assert one == f"P{smallest}"
        assert other == f"C{slow_context(text[:smallest])}"
    assert Counter(by_period) == {"P1": 8, "P2": 56, "P3": 504, "P4": 4032, "P5": 32_760}
    assert Counter(by_context) == {"C0": 8, "C1": 8792, "C2": 24_136, "C3": 3864, "C4": 560}


@given(tasks())
def test_classes_of_any_task_have_names(task: Copying) -> None:
    tokens = task.at(torch.arange(task.domain_size))
    for scheme in task.class_schemes:
        assert int(task.class_of(tokens, scheme).max()) < len(task.class_names(scheme))
    names = list(task.class_names("period"))
    for row, place in zip(tokens.tolist(), task.class_of(tokens, "period").tolist(), strict=True):
        pattern = next(p for n in task.lengths for p in [row[:n]] if (p * len(row))[: len(row)] == row)
        assert names[place] == f"P{next(d for d in range(1, 9) if (pattern[:d] * len(pattern)) == pattern * d)}"


@given(tasks(), st.data())
def test_variables_say_where_each_letter_is_copied_from(task: Copying, data: st.DataObject) -> None:
    tokens = task.at(torch.tensor([data.draw(st.integers(0, task.domain_size - 1))]))
    found = {name: values[0].tolist() for name, values in task.variables_of(tokens).items()}
    row = tokens[0].tolist()
    period = next(n for n in task.lengths if (row[:n] * len(row))[: len(row)] == row)
    places = range(task.prompt_length, task.length)
    assert found["period"] == [period] * len(places)
    assert found["source"] == [place - period for place in places]
    assert found["letter"] == [row[place] for place in places] == [row[source] for source in found["source"]]


def test_unknown_class_scheme_is_named() -> None:
    for ask in (TASK.class_names, lambda by: TASK.class_of(TASK.edge_inputs(), by)):
        with pytest.raises(UnknownNameError, match=r"perid.*period"):
            ask("perid")


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"shortest": 6}, "shortest 6 is above longest 5"),
        ({"longest": 21, "length": 60}, "2\\^63"),
        ({"longest": 10_000, "length": 30_000}, "2\\^63"),
        ({"length": 8}, "length 8 leaves nothing to copy: the first 8 letters"),
        ({"n_symbols": 27}, "less than or equal to 26"),
    ],
)
def test_a_task_that_cannot_be_written_is_refused(fields: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Copying(**fields)
    with pytest.raises(ConfigError) as raised:
        parse_config(add3().model_dump() | {"task": {"kind": "copying", **fields}})
    assert word.replace("\\", "") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_of_it_survives_json_and_takes_its_sizes_from_it() -> None:
    plain = add3().model_dump() | {"task": {"kind": "copying", "n_symbols": 3, "longest": 4, "length": 12}}
    plain["model"] = {"d_model": 16}
    config = parse_config(plain)
    assert config.task == Copying(n_symbols=3, longest=4, length=12)
    assert (config.model.d_vocab, config.model.n_ctx) == (3, 12)
    assert parse_config(config.model_dump(mode="json")) == config


def test_a_small_run_trains_and_every_sequence_is_counted(tmp_path) -> None:
    settings = {
        "task.n_symbols": 2, "task.longest": 3, "task.length": 8, "d_model": 16, "model.d_mlp": 32,
        "data.n_train": 6, "data.n_test": 2, "steps": 6, "batch": 4,
    }  # fmt: skip
    run = ag.train("copy8", name="tiny", settings=settings, runs_dir=tmp_path, progress=False)
    verdict = ag.certify(run)
    assert verdict["domain"] == {"size": 8, "method": "exhaustive", "checked": 8}
    assert sum(row["checked"] for row in verdict["by_class"]) == 8
