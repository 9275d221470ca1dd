"""Every format of addition and subtraction, held to Python's own integers and strings."""

import itertools
import random
import re

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.data import seeded
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.digits.column_arithmetic import ColumnArithmetic
from algoscope.tasks.digits.subtraction import Subtraction

CPU = torch.device("cpu")
PLAIN = {"ends": False, "padding": False}
WIDTHS = [(3, None, None), (2, None, 2), (1, 3, None), (3, 2, 3), (2, 2, 5), (4, 1, 1), (1, 1, 2)]
SIGNS = [
    ("", None, "="),
    ("", "", ""),
    ("0", "000", "0"),
    ("<BOS>", None, "="),
    ("$", "<SEP><SEP>", ""),
    ("", "0", "="),
]
ORDERS = list(itertools.product([False, True], repeat=2))


def formats(kind: type[ColumnArithmetic]) -> list[ColumnArithmetic]:
    """Widths, signs and orders in every combination, with an end or padding by chance, half with tokens in disorder."""
    chance, made = random.Random(0), []
    for (n, m, k), (prefix, between, equals), (units_first, reversed_operands) in itertools.product(
        WIDTHS, SIGNS, ORDERS
    ):
        fields = {
            "n_digits": n, "second_digits": m, "answer_digits": k, "prefix": prefix, "between": between,
            "equals": equals, "reversed": units_first, "operands_reversed": reversed_operands,
            "ends": chance.random() < 0.5, "padding": chance.random() < 0.5,
        }  # fmt: skip
        task = kind(**fields)
        if chance.random() < 0.5:
            shuffled = chance.sample(task.vocabulary, task.d_vocab)
            task = kind(**fields, tokens="".join(shuffled))
            assert task.vocabulary == tuple(shuffled)
        made.append(task)
    return made


def described(task: ColumnArithmetic) -> str:
    fields = {name: value for name, value in task.model_dump().items() if value != type(task)().model_dump()[name]}
    return ",".join(f"{name}={value}" for name, value in fields.items()) or "default"


EVERY = [*formats(Addition)[::3], *formats(Subtraction)[::7]]
SOME = EVERY[::3]


def written(task: ColumnArithmetic, a: int, b: int) -> tuple[str, str]:
    """The prompt and the answer, by Python alone."""
    n, m = task.n_digits, task.second_digits or task.n_digits
    k = task.answer_digits or max(n, m) + 1
    value = (a + b if task.kind == "addition" else a - b) % 10**k

    def number(value: int, width: int, units_first: bool) -> str:
        text = str(value).zfill(width)
        return text[::-1] if units_first else text

    sign = ("+" if task.kind == "addition" else "-") if task.between is None else task.between
    operands = number(a, n, task.operands_reversed), number(b, m, task.operands_reversed)
    prompt = task.prefix + operands[0] + sign + operands[1] + task.equals
    return prompt, number(value, k, task.reversed) + "<EOS>" * task.ends


def pairs(task: ColumnArithmetic) -> list[tuple[int, int]]:
    first, second = (10**width - 1 for width in task.widths)
    chance = random.Random(described(task))
    return [(0, 0), (first, 1), (first, second), (0, second), (chance.randint(0, first), chance.randint(0, second))]


def number_at(task: ColumnArithmetic, row: list[int], part: slice) -> int:
    """The number whose digits stand at some positions, by their significance."""
    places = zip(row[part], task.significance[part], strict=True)
    return sum(int(task.vocabulary[token]) * 10 ** (place - 1) for token, place in places)


def test_every_format_writes_and_reads_what_python_does() -> None:
    for task in EVERY:
        chosen = pairs(task)
        texts = [written(task, a, b) for a, b in chosen]
        tokens = task.sequences(*torch.tensor(chosen).T)
        assert [task.decode(row) for row in tokens.tolist()] == ["".join(both) for both in texts], described(task)
        assert tokens.shape[1] == task.n_ctx
        assert tokens.max() < task.d_vocab
        assert task.keys(tokens).tolist() == [a * 10 ** task.widths[1] + b for a, b in chosen], described(task)
        (a, b), (prompt, answer) = chosen[-1], texts[-1]
        typed = task.sign.join(str(x)[::-1] if task.operands_reversed else str(x) for x in (a, b))
        assert task.prompt(typed) == task.prompt(f" {typed} = ") == task.prompt(prompt) == prompt, described(task)
        assert task.expected(typed) == answer, described(task)


def test_every_format_enumerates_and_draws_its_domain() -> None:
    for task in SOME:
        n, m = task.widths
        index = torch.randint(10 ** (n + m), (50,), generator=seeded(CPU, 0))
        assert task.domain_size == 10 ** (n + m)
        assert task.keys(task.at(index)).equal(index)
        for hard in (0.0, 1.0):
            tokens = task.sample(50, seeded(CPU, 3), hard)
            first, second = task.operands(tokens)
            assert task.sequences(first, second).equal(tokens)
            assert first.max() < 10**n
            assert second.max() < 10**m
        changed = [task.edge_inputs()]
        if isinstance(task, Addition):
            one = torch.ones(50, dtype=torch.long)
            changed += [task.repeated(tokens, seeded(CPU, 5)), task.at_stage(tokens, one)]
            assert max(number.max() for number in task.operands(changed[-1])) < 10
        assert all(task.completed(rows).equal(rows) for rows in changed)


def test_names_parts_and_significance_describe_the_positions() -> None:
    for task in SOME:
        a, b = 10 ** task.widths[0] // 3, 10 ** task.widths[1] // 7
        row = task.sequences(torch.tensor([a]), torch.tensor([b]))[0].tolist()
        covered = [pos for part in task.parts.values() for pos in range(part.start, part.stop)]
        assert covered == list(range(task.n_ctx - 1)), described(task)
        assert len(task.answer_names) == task.n_ctx - task.prompt_length
        assert (task.answer_names[-1] == "end") == task.ends
        answer = slice(task.prompt_length, task.prompt_length + task.result_digits)
        total = (a + b if task.kind == "addition" else a - b) % 10**task.result_digits
        assert number_at(task, row, task.parts["first operand"]) == a
        assert number_at(task, row, task.parts["second operand"]) == b
        assert number_at(task, row, answer) == total
        operands = [part for name, part in task.parts.items() if name.endswith("operand")]
        digits = sum(part.stop - part.start for part in operands) + task.result_digits
        assert sum(place > 0 for place in task.significance) == digits
        assert len(task.significance) == task.n_ctx
        units_first = task.variables_of(torch.tensor([row]))["digit"][0].tolist()
        assert int("".join(map(str, reversed(units_first)))) == total
        names = zip(task.significance[answer], task.answer_names, strict=False)
        assert [name for _, name in sorted(names)] == ["units", "tens", "hundreds", "thousands", "10^4"][
            : len(units_first)
        ]


def test_the_vocabulary_has_what_is_used_and_what_is_asked_for() -> None:
    assert Addition().vocabulary == (*"0123456789", "+", "=", "<EOS>", "<PAD>")
    assert Addition(**PLAIN).vocabulary == (*"0123456789", "+", "=")
    assert Addition(**PLAIN, between="", equals="").vocabulary == tuple("0123456789")
    assert Addition(**PLAIN, prefix="0", between="0" * 9, equals="0").vocabulary == tuple("0123456789")
    bos = Addition(prefix="<BOS>", tokens="0123456789=<BOS><EOS>+", reversed=False)
    assert bos.prompt("12+7") == "<BOS>012+007="
    assert bos.prompt("<BOS>12+7=") == bos.prompt("<BOS>012+007=") == bos.prompt("12+7")
    spare = Addition(**PLAIN, tokens="+-*/=0123456789 ")
    assert spare.d_vocab == 16
    assert spare.used_tokens == (*"+=0123456789",)
    for task in SOME:
        occur = {task.vocabulary[i] for i in task.sample(300, seeded(CPU, 0)).unique().tolist()}
        assert occur == set(task.used_tokens)
        assert sorted(task.used_tokens, key=task.vocabulary.index) == list(task.used_tokens)


def test_classes_do_not_depend_on_the_format() -> None:
    for task in SOME:
        usual = type(task)(n_digits=max(task.widths))
        first, second = task.operands(task.sample(200, seeded(CPU, 0), 0.5))
        tokens, same = task.sequences(first, second), usual.sequences(first, second)
        for by in task.class_schemes:
            assert task.class_of(tokens, by).equal(usual.class_of(same, by))
        assert len(task.class_names("chain")) == task.n_columns + 1


@pytest.mark.parametrize(("n", "m"), [(3, 1), (1, 3), (2, 3)])
def test_classes_of_operands_of_two_widths_are_counted_and_listed(n: int, m: int) -> None:
    task = Addition(n_digits=n, second_digits=m)
    tokens = task.at(torch.arange(task.domain_size))
    sizes = task.class_sizes("chain")
    assert torch.bincount(task.class_of(tokens, "chain"), minlength=len(sizes)).tolist() == list(sizes)
    assert task.class_schemes == ("chain",)
    kinds = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rank = np.array([rank for size in sizes for rank in range(size)], dtype=object)
    members = task.class_members("chain", kinds, rank)
    assert task.class_of(members, "chain").equal(kinds)
    assert task.keys(members).unique().numel() == task.domain_size


def test_other_widths_keep_the_format() -> None:
    modulo = Addition(n_digits=3, answer_digits=3, second_digits=2, prefix="0", between="00", equals="", **PLAIN)
    wider = modulo.of_width(5)
    assert (wider.widths, wider.result_digits, wider.between) == ((5, 4), 5, "00")
    assert modulo.of_width(1).widths == (1, 1)
    assert Addition().of_width(5) == Addition(n_digits=5)
    wide = Addition(n_digits=40, second_digits=25, answer_digits=40, operands_reversed=True, **PLAIN)
    tokens = wide.sample(500, seeded(CPU, 0), 0.5)
    for row in tokens[:50].tolist():
        first, second, total = re.split("[+=]", wide.decode(row))
        assert (int(first[::-1]) + int(second[::-1])) % 10**40 == int(total[::-1])
    assert wide.keys(tokens).unique().numel() == 500


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokens": "0123456789+"}, "lacks = <EOS>"),
        ({"tokens": "01234567899+=<EOS>"}, "has '9' twice"),
        ({"tokens": "+=<EOS>", "n_digits": 1}, "lacks 0 1 2"),
        ({"answer_digits": 0}, "answer_digits"),
        ({"second_digits": 201}, "second_digits"),
        ({"prefix": None}, "prefix"),
        ({"betwen": "x"}, "between"),
    ],
)
def test_a_format_that_contradicts_itself_is_one_line(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError if "betwen" not in fields else ag.AlgoscopeError, match=re.escape(words)) as raised:
        Addition(**fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["12+4+", "a+1", "1234+1", "", "12", "0123045", "++", "1+2-3"])
def test_what_is_no_sum_is_one_line_in_a_format_without_signs(text: str) -> None:
    task = Addition(**PLAIN, between="", equals="")
    with pytest.raises(VocabularyError, match=r"write it as 123|digits; the task has 3") as raised:
        task.prompt(text)
    assert "\n" not in str(raised.value)


def test_a_neighbour_differs_in_one_token_in_every_format() -> None:
    for task in SOME:
        text = task.decode(task.sample(1, seeded(CPU, 2))[0, : task.prompt_length].tolist())
        other = task.neighbour(text)
        assert sum(x != y for x, y in zip(task.encode(text), task.encode(other), strict=True)) == 1
        assert task.expected(other) != task.expected(text)


@pytest.mark.parametrize(
    "settings",
    [
        {"task.ends": "false", "task.padding": "false"},
        {"task.between": "", "task.equals": "", "task.answer_digits": "2"},
        {"task.tokens": "=+9876543210<EOS>", "task.second_digits": "1", "task.operands_reversed": "true"},
        {"task.prefix": "0", "task.between": "000", "task.equals": "0", "task.ends": "false", "data.shortest": 1},
    ],
)
def test_other_formats_train_certify_and_open_again(settings: dict[str, object], tmp_path) -> None:
    short = {"n_digits": 2, "steps": 3, "batch": 8, "data.n_test": 10, **settings}
    run = ag.train("add3", settings=short, runs_dir=tmp_path, progress=False)
    model = ag.open(run)
    task = model.task
    assert (model.cfg.d_vocab, model.cfg.n_ctx) == (task.d_vocab, task.n_ctx)
    facts = ag.certify(model).facts
    assert facts["domain"]["checked"] == 10 ** sum(task.widths)
    answer = model.generate("1+2")
    assert len(task.encode(answer.removeprefix(task.prompt("1+2")))) <= task.n_ctx - task.prompt_length
    assert ag.lenses.attention(model, "1+2").panels
