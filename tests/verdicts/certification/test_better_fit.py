"""A group model that is wrong because its elements are in another order is recognised; a random one is not."""

import itertools
import re

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError
from algoscope.doors.cli.model_commands import show_verdict
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups._relabelling import relabelled
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group import Group
from algoscope.tasks.groups.group_tables import named
from algoscope.verdicts.certification.certify import certify


class Says(Subject):
    """Answers with the entries of a table."""

    def __init__(self, task: Binary, table: np.ndarray) -> None:
        cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=2, n_heads=1, d_mlp=2)
        super().__init__("says", build(cfg, 0), task)
        self.table = torch.as_tensor(table)

    def answers(self, prompts: torch.Tensor) -> torch.Tensor:
        first, second = self.task.operands(prompts)
        return self.table[first, second][:, None]

    def answer_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot(self.answers(tokens), self.task.d_vocab).float()

    def generate_tokens(self, prompts: torch.Tensor, n_new: int, *, use_cache: bool = True) -> torch.Tensor:
        return self.answers(prompts)[:, :n_new]

    def to_dtype(self, dtype: torch.dtype) -> "Says":
        return self


def in_order(table: np.ndarray, elements: list[int]) -> np.ndarray:
    """The products by token, where token x stands for `elements[x]`: element by element."""
    token = {element: x for x, element in enumerate(elements)}
    return np.array([[token[table[g, h]] for h in elements] for g in elements])


def by_cycle_type() -> list[int]:
    """The permutations of four letters in lexicographic order, sorted by their fixed points instead."""
    rows = list(itertools.permutations(range(4)))
    return sorted(range(24), key=lambda g: sum(rows[g][i] != i for i in range(4)))


ORDERS = {
    "left first": ("S4", named("S4").T),
    "by cycle type": ("S4", in_order(named("S4"), by_cycle_type())),
    "identity last": ("Q8", in_order(named("Q8"), list(range(7, -1, -1)))),
    "rotations and flips in turn": ("D6", in_order(named("D6"), [g // 2 + 6 * (g % 2) for g in range(12)])),
    "three generators": ("C2xC2xC2", in_order(named("C2xC2xC2"), [3, 5, 1, 0, 7, 2, 6, 4])),
}


@pytest.mark.parametrize(("group", "table"), ORDERS.values(), ids=ORDERS.keys())
def test_another_order_of_elements_is_found_and_can_be_given(group: str, table: np.ndarray) -> None:
    task = Group(group=group)
    verdict = certify(Says(task, table))
    if verdict["wrong"] < task.domain_size / 2:
        pytest.fail("the test needs an order in which most answers are wrong")
    fit, n = verdict["better_fit"], task.domain_size
    assert (fit["right"], fit["checked"]) == (n, n)
    assert f"with its elements in another order it is right on {n} of {n}: --set 'elements=[" in str(verdict)
    given = re.search(r"--set 'elements=\[([0-9,]+)\]'", str(verdict))
    assert given is not None
    elements = [int(element) for element in given[1].split(",")]
    assert elements == fit["settings"]["elements"]
    as_given = certify(Says(Group(group=group, elements=tuple(elements)), table))
    assert (as_given["wrong"], as_given["better_fit"]) == (0, None)
    np.testing.assert_array_equal(in_order(named(group), elements), table)


def test_a_model_with_some_errors_in_another_order_is_counted_in_it() -> None:
    table, draw = named("S4").T.copy(), np.random.default_rng(3)
    errs = draw.random(table.shape) < 0.1
    table[errs] = draw.integers(24, size=int(errs.sum()))
    verdict = certify(Says(Group(group="S4"), table))
    assert verdict["better_fit"]["right"] == int((table == named("S4").T).sum()) < 576


def test_answers_of_another_group_are_named() -> None:
    verdict = certify(Says(Group(group="C12"), in_order(named("A4"), [4, 0, *range(5, 12), 1, 2, 3])))
    assert "as the group A4 it is right on 144 of 144: --set 'group=A4' --set 'elements=[" in str(verdict)
    fit = Group(**verdict["better_fit"]["settings"])
    assert certify(Says(fit, in_order(named("A4"), [4, 0, *range(5, 12), 1, 2, 3])))["wrong"] == 0


def test_another_operation_is_named() -> None:
    number = np.arange(11)
    differences = (number[:, None] - number) % 11
    verdict = certify(Says(ag.Modular(p=11), differences))
    assert "as a - b it is right on 121 of 121: --set 'operation=-'" in str(verdict)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 10]
    verdict = certify(Says(ag.Modular(p=11), in_order(named("C11"), order)))
    assert "--task group --set 'group=C11' --set 'elements=[" in str(verdict)


@pytest.mark.parametrize("group", ["C3", "C4", "S3", "Q8", "S4"])
def test_answers_that_are_no_products_get_no_order(group: str) -> None:
    table, draw = named(group), np.random.default_rng(2)
    n = len(table)
    number = np.arange(n)
    for seed in range(20):
        assert relabelled(table, draw.integers(-1, n, size=(n, n))) is None, seed
    for answers in (np.zeros((n, n), dtype=int), np.maximum.outer(number, number), np.tile(number, (n, 1))):
        assert relabelled(table, answers) is None
        assert relabelled(table, answers.T) is None
    task = Group(group=group)
    random = Subject("random", build(ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx), 0), task)
    assert certify(random)["better_fit"] is None
    assert "--set" not in str(certify(random))


def test_a_right_model_and_other_tasks_get_no_hint() -> None:
    assert certify(Says(Group(group="S4"), named("S4")))["better_fit"] is None
    assert certify("planted:reversal-wrong")["better_fit"] is None


def test_a_table_may_have_its_neutral_element_anywhere() -> None:
    table = in_order(named("S3"), [3, 1, 2, 0, 5, 4])
    task = Group(group="mine", table=tuple(map(tuple, table.tolist())))
    assert certify(Says(task, table))["wrong"] == 0
    verdict = certify(Says(task, named("S3")))
    assert verdict["better_fit"]["right"] == 36


def test_elements_are_an_order() -> None:
    task = Group(group="D5", elements=tuple(range(9, -1, -1)))
    np.testing.assert_array_equal(
        task.at(torch.arange(100))[:, -1].reshape(10, 10), in_order(named("D5"), list(range(9, -1, -1)))
    )
    structure = task.structure()
    assert structure is not None
    for g, h in itertools.product(range(10), repeat=2):
        answer = int(task.product(torch.tensor([structure.first[g]]), torch.tensor([structure.second[h]])))
        assert answer == structure.answer[structure.table[g, h]]
    for elements in ((0, 1), (0, 0, 1, 2, 3, 4), (1, 2, 3, 4, 5, 6)):
        with pytest.raises(ConfigError, match="elements must be the numbers 0 to 5"):
            Group(group="S3", elements=elements)


def test_the_command_shows_it_and_an_import_takes_it(tmp_path, capsys: pytest.CaptureFixture) -> None:
    verdict = certify(Says(Group(group="S4"), named("S4").T))
    show_verdict(verdict)
    assert verdict["better_fit"]["words"] in capsys.readouterr().out.splitlines()
    task = Group(group="S3", form="ab=")
    subject = Subject("s3", build(ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx), 0), task)
    weights, _ = ag.export(subject, "transformerlens", tmp_path / "s3.safetensors")
    settings = {"group": "S3", "form": "ab=", "elements": "[5,4,3,2,1,0]"}
    imported = ag.import_weights(weights, "group", settings=settings, runs_dir=tmp_path)
    assert imported.config.task == Group(group="S3", form="ab=", elements=(5, 4, 3, 2, 1, 0))
    again = ag.open(f"foreign:{weights}?task=group&group=S3&form=ab%3D&elements=[5,4,3,2,1,0]")
    assert again.task == imported.config.task
