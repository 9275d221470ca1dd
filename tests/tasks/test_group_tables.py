"""Groups as tables, and the task of composing in them."""

import itertools

import numpy as np
import pytest
import torch

from algoscope.config import parse_config
from algoscope.core.errors import ConfigError
from algoscope.tasks.groups.group import Group
from algoscope.tasks.groups.group_tables import check, logarithms, named, neutral
from algoscope.tasks.groups.modular import Modular

NAMES = {"C2": 2, "C12": 12, "D5": 10, "S3": 6, "S4": 24, "A4": 12, "A5": 60, "Q8": 8, "C2xC4": 8, "S3xC2": 12}
ABELIAN = {"C2", "C12", "C2xC4"}


@pytest.mark.parametrize(("name", "order"), NAMES.items())
def test_named_groups_obey_the_laws(name: str, order: int) -> None:
    table = named(name)
    check(table)
    assert table.shape == (order, order)
    assert bool((table == table.T).all()) == (name in ABELIAN)


def orders(name: str) -> list[int]:
    """How often each element must be taken to reach 0: what tells groups of one size apart."""
    table, found = named(name), []
    for g in range(len(table)):
        power, n = g, 1
        while power:
            power, n = table[power, g], n + 1
        found.append(n)
    return sorted(found)


def test_groups_of_one_size_are_the_ones_they_say() -> None:
    assert orders("Q8") == [1, 2, 4, 4, 4, 4, 4, 4]
    assert orders("D4") == [1, 2, 2, 2, 2, 2, 4, 4]
    assert orders("A4") == [1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert orders("D3") == orders("S3") == [1, 2, 2, 2, 3, 3]


def test_permutations_are_composed_right_one_first() -> None:
    rows = list(itertools.permutations(range(4)))
    table = named("S4")
    for g, h in [(3, 17), (20, 5), (11, 11)]:
        assert rows[table[g, h]] == tuple(rows[g][rows[h][i]] for i in range(4))


@pytest.mark.parametrize("name", ["E8", "C", "S9", "D501", "Q16", "C40xC40", "", "C0", "s4"])
def test_what_is_no_group_here_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="group"):
        named(name)


def test_the_laws_are_checked() -> None:
    for table, words in [
        ([[0, 1], [1, 2]], "outside 0 to 1"),
        ([[1, 1], [0, 0]], "no element of the table is the identity"),
        ([[0, 1], [1, 1]], "twice"),
        ([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]], "not associative"),
    ]:
        with pytest.raises(ValueError, match=words):
            check(np.array(table))


def test_logarithms_are_of_a_primitive_root() -> None:
    powers = logarithms(11)
    assert powers is not None
    assert sorted(powers) == list(range(1, 11))
    assert powers[7] == pow(int(powers[1]), 7, 11)
    assert logarithms(12) is None
    assert logarithms(9) is None  # 2 is a primitive root, of six residues only


@pytest.mark.parametrize(
    "task",
    [
        *(Modular(p=p, operation=sign) for p in (11, 12) for sign in "+-"),
        Modular(p=11, operation="*"),
        Group(group="D5"),
    ],
    ids=repr,
)
def test_a_structure_is_the_task_in_another_order(task: Modular | Group) -> None:
    group = task.structure()
    assert group is not None
    check(group.table)
    for g, h in itertools.product(range(group.order), repeat=2):
        first, second = torch.tensor([group.first[g]]), torch.tensor([group.second[h]])
        assert int(task.product(first, second)) == group.answer[group.table[g, h]]
    assert [group.table[g, group.inverse[g]] for g in range(group.order)] == [0] * group.order


def test_multiplication_by_a_composite_number_is_no_group() -> None:
    assert Modular(p=12, operation="*").structure() is None


def test_a_task_of_a_group() -> None:
    task = Group(group="S3", form="ab=")
    assert (task.order, task.d_vocab, task.n_ctx, task.domain_size) == (6, 7, 4, 36)
    table = named("S3")
    assert task.expected("3 4") == str(table[3, 4])
    tokens = task.at(torch.arange(36))
    assert [tuple(row) for row in tokens.tolist()] == [(a, b, 6, table[a, b]) for a in range(6) for b in range(6)]
    commutes = [table[a, b] == table[b, a] for a in range(6) for b in range(6)]
    assert task.class_of(tokens, "commutes").tolist() == [int(c) for c in commutes]
    assert task.decode(tokens[9].tolist()) == f"1 3={table[1, 3]}"
    given = Group(group="mine", table=tuple(map(tuple, named("Q8").tolist())))
    assert given.expected("2*3") == str(named("Q8")[2, 3])
    assert given == Group(group="mine", table=given.table)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group": "S77"}, "unknown group 'S77'"),
        ({"group": "C1"}, "single element"),
        ({"table": [[0, 1], [1, 1]]}, "twice"),
        ({"table": [[0, 1]]}, "square"),
    ],
)
def test_a_config_names_a_group_that_is_none(fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        parse_config({"recipe": "x", "task": {"kind": "group", **fields}, "model": {}, "data": {}, "optim": {},
                      "train": {"steps": 1, "batch": 1}})  # fmt: skip
    assert "\n" not in str(raised.value)


def test_the_identity_of_a_table_may_be_any_element() -> None:
    order = np.random.default_rng(0).permutation(6)
    table = np.empty((6, 6), dtype=int)
    table[np.ix_(order, order)] = order[named("S3")]  # element g of S3 is called order[g]
    check(table)
    structure = Group(group="renamed", table=tuple(map(tuple, table.tolist()))).structure()
    assert neutral(table) == order[0] != 0
    assert (table[np.arange(6), structure.inverse] == order[0]).all()
