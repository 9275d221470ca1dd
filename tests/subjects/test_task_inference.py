"""The format of a task, inferred from a model's answers: models that know one format, and answer no other."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import algoscope as ag
from algoscope.core.errors import TaskMismatchError
from algoscope.data import seeded
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.networks.transformer import Transformer
from algoscope.subjects._task_inference import infer_task
from algoscope.tasks.base import Task

CPU = torch.device("cpu")
PLAIN = {"ends": False, "padding": False}


class Oracle:
    """Logits of a model that answers one format right, and any other prompt with its last token."""

    def __init__(self, task: Task, errors: float = 0.0, is_strict: bool = True) -> None:
        self.task, self.errors, self.is_strict = task, errors, is_strict

    def __call__(self, tokens: Tensor, at: slice) -> Tensor:
        task, n = self.task, self.task.prompt_length
        asked = tokens[:, at]  # other prompts are answered with the token that was read last
        if tokens.shape[1] >= n:
            prompts = tokens[:, :n].clamp(max=task.d_vocab - 1)
            whole = task.completed(prompts)
            right = torch.cat([whole, tokens[:, task.n_ctx - 1 :]], dim=1)[:, at.start + 1 : at.stop + 1]
            same = whole[:, :n] == tokens[:, :n]
            if not self.is_strict:
                same |= ~torch.isin(
                    whole[:, :n], torch.tensor([task.vocabulary.index(digit) for digit in "0123456789"])
                )
            known = same.all(dim=1) & (torch.rand(len(tokens), generator=seeded(CPU, 1)) >= self.errors)
            asked = torch.where(known[:, None], right, asked)
        return torch.nn.functional.one_hot(asked, max(task.d_vocab, int(tokens.max()) + 1)).double()


FORMATS = [
    ag.Addition(**PLAIN),
    ag.Addition(**PLAIN, n_digits=2, operands_reversed=True, tokens="=+0123456789"),
    ag.Addition(**PLAIN, tokens="+0123456789="),  # as sorted(set(text)) has them
    ag.Addition(**PLAIN, n_digits=4, between="", equals=""),
    ag.Addition(**PLAIN, n_digits=2, between="", equals="", answer_digits=2),
    ag.Addition(padding=False, reversed=False, tokens="=+0123456789<EOS>"),
    ag.Addition(ends=False, n_digits=2),
    ag.Addition(**PLAIN, n_digits=10, operands_reversed=True, prefix="0", between="0" * 9, equals="0"),
    ag.Addition(**PLAIN, n_digits=4, prefix="<BOS>", reversed=False),
    ag.Subtraction(**PLAIN, n_digits=3, reversed=False),
    ag.Modular(p=59, form="ab="),
    ag.Modular(p=23, operation="*"),
]


def written(task: Task) -> list[str]:
    """Some inputs as token ids: tasks that write the same ids are one, whatever their tokens are called."""
    return task.at(torch.arange(0, 90, 7)).tolist()


def check(task: Task, n_ctx: int | None) -> None:
    found, line = infer_task(Oracle(task), task.d_vocab, n_ctx, task.kind, {})
    assert written(found) == written(task), line
    assert found.prompt_length == task.prompt_length
    assert found.d_vocab <= task.d_vocab
    assert "100.0% are right" in line
    assert f"inferred from {task.d_vocab} tokens and" in line


@pytest.mark.parametrize("number", range(0, len(FORMATS), 2))
def test_the_format_that_a_model_knows_is_inferred(number: int) -> None:
    task = FORMATS[number]
    check(task, task.n_ctx - number % 4 // 2)  # the last position may be missing, as it is never read


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(FORMATS)))
@pytest.mark.parametrize("spare", [-1, 0, 6, None])
def test_every_format_is_inferred_whatever_the_context_leaves_over(number: int, spare: int | None) -> None:
    task = FORMATS[number]
    if spare in (-1, 0) or not (task.kind == "modular" or task.prefix):
        check(task, None if spare is None else task.n_ctx + spare)


def test_a_model_that_reads_no_signs_is_given_them_in_the_usual_order() -> None:
    task = ag.Addition(**PLAIN)
    found, _ = infer_task(Oracle(task, is_strict=False), 12, 12, "addition", {})
    assert found == task
    longer, line = infer_task(Oracle(task, is_strict=False), 12, None, "addition", {})
    assert longer == task
    assert "inferred from 12 tokens and 1,000 answers" in line


def test_what_is_given_stays_and_the_usual_format_needs_no_line() -> None:
    assert infer_task(Oracle(ag.Addition()), 14, 13, "addition", {}) == (ag.Addition(), "")
    assert infer_task(Oracle(ag.Addition()), 14, 12, "addition", {"n_digits": "3"}) == (ag.Addition(), "")
    last = ag.Addition(**PLAIN, reversed=False)
    found, line = infer_task(Oracle(last, errors=0.05), 12, 11, "addition", {"tokens": "0123456789+=", "ends": False})
    assert written(found) == written(last)
    assert found.tokens == "0123456789+="
    assert re.search(r"9[3-7]\.\d% are right", line)
    assert infer_task(Oracle(ag.Reversal()), 10, 11, "reversal", {}) == (ag.Reversal(), "")


def test_a_planted_adder_without_end_and_padding_is_read() -> None:
    model = ag.open("planted:carry-adder").model

    def answers(tokens: Tensor, at: slice) -> Tensor:
        return plain_logits(model, tokens, at)[..., :12]

    found, line = infer_task(answers, 12, 13, "addition", {})
    assert (found.n_digits, found.reversed, found.ends, found.d_vocab) == (3, True, False, 12)
    assert "ends=false padding=false" in line


def test_a_model_that_adds_nothing_is_told_what_was_tried() -> None:
    def noise(tokens: Tensor, at: slice) -> Tensor:
        return torch.rand(len(tokens), at.stop - at.start, 12, generator=torch.Generator().manual_seed(0))

    with pytest.raises(TaskMismatchError, match=r"none of \d+ formats of addition that fit 12 tokens and 12") as raised:
        infer_task(noise, 12, 12, "addition", {})
    assert "give the task's fields, such as n_digits=3 ends=false" in str(raised.value)
    assert "\n" not in str(raised.value)
    task, line = infer_task(noise, 12, 12, "addition", PLAIN)
    assert task == ag.Addition(**PLAIN)
    assert line.endswith("ends=false padding=false has 0.0%")
    with pytest.raises(TaskMismatchError, match="give the task's fields, such as p=113"):
        infer_task(noise, 12, 4, "modular", {})


def test_an_illegal_field_is_named() -> None:
    with pytest.raises(ag.AlgoscopeError, match="n_digts"):
        infer_task(Oracle(ag.Addition()), 14, 13, "addition", {"n_digts": 3})


@pytest.fixture(scope="module")
def plain_adder() -> Transformer:
    """The planted adder without the tokens for end and padding, and without the position of the end."""
    model = ag.open("planted:carry-adder").model
    cut = Transformer(model.cfg.model_copy(update={"d_vocab": 12, "n_ctx": 12}))
    rows = ("embed.weight", "unembed.weight", "unembed.bias", "pos_embed.weight")
    cut.load_state_dict({name: value[:12] if name in rows else value for name, value in model.state_dict().items()})
    return cut


def test_a_plain_adder_in_memory_opens_by_the_name_of_its_task(plain_adder: Transformer) -> None:
    model = ag.open(plain_adder, task="addition")
    assert model.task == ag.Addition(**PLAIN)
    assert model.note.startswith("addition with ends=false padding=false, inferred from 12 tokens and 12 positions")
    assert model.generate("999+1") == "0001"
    assert ag.certify(model, sample=500).facts["wrong"] == 0
    said = ag.open(plain_adder, task=ag.Addition(**PLAIN, reversed=False))
    assert said.task.reversed is False  # what is said and fits is not changed
    assert said.note == ""


def test_a_file_of_a_plain_adder_is_imported_and_opened(plain_adder: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({name: value.contiguous() for name, value in plain_adder.state_dict().items()}, path)
    model = ag.open(f"foreign:{path}?task=addition&act=relu")
    assert model.task == ag.Addition(**PLAIN)
    assert "inferred from 12 tokens and 12 positions" in model.note
    run = ag.import_weights(path, "addition", act="relu", settings={"n_digits": 3}, runs_dir=tmp_path)
    assert run.config.task == ag.Addition(**PLAIN)
    assert run.summary.test_accuracy == 1
    assert run.summary.imported.account[-1].what == "task"
    with pytest.raises(ag.AlgoscopeError, match="n_heads"):
        ag.import_weights(path, "modular", act="relu", name="other", runs_dir=tmp_path)
