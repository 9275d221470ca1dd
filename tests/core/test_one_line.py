"""What a user can get wrong in a value of ours is one line that names it, however odd the value."""

import copy
import json
import re

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, ArgumentError, ConfigError, UnknownNameError
from algoscope.core.panel import Axis
from algoscope.core.registry import Entry, Table
from algoscope.recipes.table import RECIPES

SIZES = {"d_vocab": 5, "n_ctx": 5}
PANEL = ag.Panel("p", (Axis("head", ("L0H0", "L0H1")),), np.array([0.25, 0.75]), "share")
FINDING = ag.Finding("kind", "claim", {"n": 1}, (PANEL,))


def test_messages_are_one_line_and_not_endless() -> None:
    error = AlgoscopeError("first\n  second\x1b[31m " + "x" * 10_000 + " the way out")
    assert str(error).startswith("first second\\x1b[31m xxx")
    assert str(error).endswith("the way out")
    assert len(str(error)) < 1300


@pytest.mark.parametrize("name", [None, 5, b"x", ["a"], {}, object(), "a\nb", "a" * 10_000, torch.zeros(2, 2), len])
def test_a_name_of_any_type_is_unknown_in_one_line(name) -> None:
    table = Table("colour", {"red": Entry("x:y", "red")})
    assert name not in table
    assert re.fullmatch(r"unknown colour [^\n]{1,200}: known: red", str(UnknownNameError("colour", name, table)))


def test_an_error_survives_the_way_between_processes() -> None:
    error = UnknownNameError("colour", "rad", ["red"])
    again = copy.copy(error)  # as pickle makes it
    assert (type(again), str(again)) == (UnknownNameError, str(error))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: ag.Group(group="S9"), "Group: unknown group 'S9': C12"),
        (lambda: ag.Group(table=[[0, 1], [1, 1]]), "twice: there are no inverses"),
        (lambda: ag.Group(table=5), "table: .* not 5"),
        (lambda: ag.Modular(113), "Modular takes its fields by name, not 113 alone: kind=..., form=..., p=..."),
        (lambda: ag.Modular(q=5), "unknown field of Modular 'q': .*known: form, kind, operation, p"),
        (lambda: ag.Modular(p=True), "p is neither true nor false"),
        (lambda: ag.Modular(p=float("nan")), "p: .* finite number, not nan"),
        (lambda: ag.Addition(n_digits="a\n" * 9_999), "n_digits: .* integer"),
        (lambda: ag.ModelConfig(n_ctx=5), "ModelConfig needs the field d_vocab"),
        (lambda: ag.ModelConfig(**SIZES, d_model=33, n_heads=2), "ModelConfig: d_model 33 is not a multiple"),
        (lambda: ag.RunConfig(recipe="a", task=5, model={}, data={}, optim={}, train={}), "task: .* not 5"),
        (lambda: ag.override(5, {}), r"override\(\): config takes a RunConfig, not 5"),
        (lambda: ag.override(RECIPES.load("add3")(), 5), r"override\(\): settings takes a dict, not 5"),
    ],
)
def test_fields_that_do_not_fit_are_one_line(make, line: str) -> None:
    with pytest.raises(ConfigError if "unknown field" not in line else UnknownNameError, match=line) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_fields_take_numbers_of_numpy_and_pytorch() -> None:
    assert ag.Modular(p=np.int64(7)) == ag.Modular(p=torch.tensor(7)) == ag.Modular(p=7)
    assert ag.Group(table=np.array([[0, 1], [1, 0]])).expected("1*1") == "0"
    assert type(ag.ModelConfig(**SIZES, d_model=np.int32(8)).d_model) is int


@pytest.mark.parametrize("text", ["", "abc", "{", "[]", "null", "5", '"x"', "{}", '{"finding": 5}'])
def test_a_document_that_is_no_finding_is_one_line(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"^no finding that `to_json` wrote: [^\n]+$"):
        ag.Finding.from_json(text)


@pytest.mark.parametrize("value", [None, 5, "x"])
@pytest.mark.parametrize("key", ["axes", "axis_titles", "marks", "values", "quantity", "view"])
def test_a_damaged_panel_is_one_line(key: str, value: object) -> None:
    plain = json.loads(FINDING.to_json())
    plain["panels"][0][key] = value
    with pytest.raises(ArgumentError, match=r"^no finding that `to_json` wrote: [^\n]+$"):
        ag.Finding.from_json(json.dumps(plain))


def test_a_panel_says_what_does_not_fit() -> None:
    axes = (Axis("head", ["L0H0", "L0H1"]),)
    assert ag.Panel("p", axes, [0.25, 0.75], "share").cells() == PANEL.cells()
    with pytest.raises(ArgumentError, match=r"panel 'p': values of shape \[3\], but the axes have labels for \[2\]"):
        ag.Panel("p", axes, np.zeros(3), "share")
    with pytest.raises(ArgumentError, match=r"values takes an array \[...\] of floats, not 'x'"):
        ag.Panel("p", axes, "x", "share")
    with pytest.raises(UnknownNameError, match="axis of the panel 'p' 'hed': did you mean 'head'"):
        PANEL.select(hed=0)
    with pytest.raises(ArgumentError, match="no head 2, it has 2"):
        PANEL.select(head=2)


@pytest.mark.parametrize("device", ["", "gpu", "meta", "cuda:99", 0])
def test_a_device_that_is_not_here_is_one_line(device) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*(device)[^\n]*$"):
        ag.open("planted:clock", device=device)
    assert ag.open("planted:clock", device=torch.device("cpu")).device.type == "cpu"
