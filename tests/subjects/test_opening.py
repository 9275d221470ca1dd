"""Opening by name and from memory: another task, tokenizer or float type, and models that a file of one's own makes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError
from algoscope.subjects.text import Letters

RULE = """
import torch
import algoscope as ag

TASK = ag.Addition(n_digits=1)

def add(tokens):
    print("called")
    n = tokens.shape[1]
    whole = TASK.completed(tokens[:, :4])
    return 10.0 * torch.nn.functional.one_hot(whole[:, n], TASK.d_vocab).double()

class Adder:
    def __call__(self, tokens):
        return add(tokens)

def make(scale=1):
    return Adder()

def with_size(d_model, n_heads):
    return Adder()

class Sized:
    def __init__(self, d_model):
        self.d_model = d_model

class Printing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Embedding(14, 8), torch.nn.Linear(8, 14)

    def forward(self, tokens):
        print("called", tokens.shape)
        return self.out(self.embed(tokens))

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")

instance = Adder()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("rule.py").write_text(RULE)
    return "module:rule.py"


@pytest.mark.parametrize("name", ["add", "Adder", "make", "instance"])
def test_a_file_names_a_function_or_what_makes_one(file: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    subject = ag.open(f"{file}:{name}", task="addition?n_digits=1")
    assert subject.name == f"{file}:{name}"
    assert subject.is_black_box
    assert subject.generate("7+5") == "21<EOS>"
    assert ag.open(f"{file}:{name}?task=addition%3Fn_digits=1").generate("7+5") == "21<EOS>"
    assert capsys.readouterr().out == ""


def test_a_module_of_a_file_takes_weights_and_prints_nothing(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = ag.open(f"{file}:Printing", task=ag.Addition(n_digits=1))
    assert first.note.startswith("a black box: a module that is not converted (the module has no attention)")
    weights = {"embed.weight": torch.eye(14, 8), "out.weight": torch.ones(14, 8), "out.bias": torch.arange(14.0)}
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, "w.pt")
    loaded = ag.open(f"{file}:Printing?weights=w.pt", task=ag.Addition(n_digits=1))
    assert loaded([[1, 2]])[0, 1].tolist() == [1.0 + i for i in range(14)]
    Path("rule.py").write_text(RULE.replace("Printing", "Adding").replace("self.out", "self.head"))
    with pytest.raises(AlgoscopeError, match=r"the weights in w.pt do not fit rule.py:Adding: RuntimeError"):
        ag.open(f"{file}:Adding?weights=w.pt", task=ag.Addition(n_digits=1))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":with_size", r"rule.py:with_size needs d_model, n_heads: write a function without arguments in the file"),
        (":Sized", r"rule.py:Sized needs d_model: write a function"),
        (":number", r"rule.py:number\(\) makes an int, not a model: return an nn.Module"),
        (":broken", r"rule.py cannot be run, line 40: RuntimeError: no weights here"),
        (":TASK", r"is an Addition, not a model; known in this file: add, Adder, make"),
        (":ad", r"unknown name in rule.py 'ad': did you mean 'add'"),
        (":add?weights=w.pt", r"is no module of PyTorch, so it takes no weights"),
        (":add?task=reversal", r"names a task, and so does --task \(task=\): leave out one"),
        (":add?n_heads=3", r"unknown option of open\(\) 'n_heads'"),
        (":add?n_ctx=2", r"reads 2 tokens, the task addition needs 6"),
        ("", r"'rule.py' does not name a model: write rule.py:NAME"),
    ],
)
def test_a_name_in_a_file_that_is_no_model_is_one_line(file: str, name: str, message: str) -> None:
    with pytest.raises(AlgoscopeError, match=message):
        ag.open(f"{file}{name}", task=ag.Addition(n_digits=1))


def test_a_transformer_of_ours_opens_as_it_is_and_is_not_changed() -> None:
    source = ag.open("planted:carry-adder")
    module = copy.deepcopy(source.model).train().requires_grad_(True)
    opened = ag.open(module, task=source.task)
    assert (opened.is_black_box, opened.weights_sha256) == (False, source.weights_sha256)
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert ag.open(module, task=source.task, dtype=torch.float64).dtype == torch.float64
    free = ag.open(ag.open("planted:induction").model, tokenizer="abcdefghijklmnopqrstuvwxyz")
    assert free.generate("abcab", 1) == "c"


@pytest.mark.parametrize("dtype", ["float64", "torch.float64", torch.float64])
def test_a_model_opens_in_any_float_type(dtype: Any) -> None:
    assert ag.open("planted:carry-adder", dtype=dtype).dtype == torch.float64
    assert ag.open(ag.open("planted:carry-adder"), dtype=dtype).dtype == torch.float64


def test_a_model_is_asked_another_task_that_fits_it() -> None:
    model = ag.open("planted:carry-adder")
    other = ag.open(model, task="subtraction?n_digits=3")
    assert (other.task.kind, other.note) == ("subtraction", "evaluated with another task than its own")
    assert (model.task.kind, model.note) == ("addition", "")
    assert ag.open(model, task=model.task).note == ""
    wrong = ag.certify("planted:carry-adder", task=ag.Subtraction(n_digits=3), sample=50)
    assert (wrong["task"], wrong["note"]) == ("subtraction", other.note)
    assert ag.open("planted:induction", tokenizer=Letters("zyxwvutsrqponmlkjihgfedcba")).generate("abcab", 1) == "c"


def test_a_run_is_asked_another_task_and_then_keeps_no_findings(small_run: ag.Run) -> None:
    for source in (small_run, f"run:{small_run.path}"):
        own = ag.open(source, task=small_run.config.task)
        assert own.note == ""
        assert own.origin is not None
        other = ag.open(source, task=ag.Subtraction(n_digits=1))
        assert (other.origin, other.task.kind) == (None, "subtraction")
        assert other.note == "evaluated with the task subtraction, which it was not trained on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "addtion"}, r"unknown task 'addtion': did you mean 'addition'"),
        ({"task": ag.Addition}, r"task takes a task, such as ag.Addition\(n_digits=3\), or its name"),
        ({"task": ag.Modular(p=113)}, r"planted:carry-adder has 14 tokens, the task modular needs 115"),
        ({"task": ag.Addition(n_digits=9)}, r"needs 30"),
        ({"dtype": "float63"}, r"unknown float type 'float63': did you mean 'float64'"),
        ({"dtype": torch.int8}, r"unknown float type 'int8'"),
        ({"device": "tpu"}, r"device 'tpu' is not available here"),
        ({"tokenizer": 3}, r"tokenizer=3 is no tokenizer"),
        ({"n_heads": 3}, r"unknown option of open\(\) 'n_heads': known: device, dtype, runs_dir, task, tokenizer"),
    ],
)
def test_what_does_not_fit_a_model_is_one_line(options: dict[str, Any], message: str) -> None:
    for model in ("planted:carry-adder", ag.open("planted:carry-adder")):
        with pytest.raises(AlgoscopeError, match=message):
            ag.open(model, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear, r"Linear is a class: give one that was made, such as Linear\(\)"),
        (3, r"name takes a model: a name such as 'run:add3'"),
        (len, r"len cannot read tokens|len returns"),
        ("carry-adder", r"'carry-adder' does not name a model: write one of run:NAME"),
    ],
)
def test_what_is_no_model_is_one_line(model: Any, message: str) -> None:
    with pytest.raises(AlgoscopeError, match=message):
        ag.open(model, task="addition")
