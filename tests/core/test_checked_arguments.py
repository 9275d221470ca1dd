"""Arguments of public functions: what is meant is taken, anything else is one line that says what is taken."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsIndex, get_args

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

import algoscope as ag
from algoscope.core.arguments import Count, Form, Range, _unchanged, checked_arguments, fitted
from algoscope.core.errors import ArgumentError, UnknownNameError
from algoscope.lenses.interventions.activation_patching import SWEEPS, Sweep
from algoscope.lenses.interventions.metrics import METRICS, MetricName
from algoscope.lenses.interventions.replacements import KINDS, Kind

Colour = Literal["red", "green"]


@checked_arguments
def paint(what: str, colours: Colour | Sequence[Colour] | None = "red", *, size: int = 1) -> str:
    """Paint."""
    return f"{what} {colours} {size}"


@checked_arguments
def take(
    *,
    count: Count | None = None,
    share: Annotated[float, Range(0, 1)] = 0.5,
    exact: bool = False,
    where: Path = Path(),
    texts: Sequence[str] = (),
    pair: tuple[int, float] = (0, 0.0),
    some: tuple[int, ...] = (),
    listed: list[int] | None = None,
    words: Annotated[str | Sequence[str], Form("one text or several")] = "",
    settings: Mapping[str, int] | None = None,
    rule: Literal["a", "b"] | Callable[[Any], Any] = "a",
    tokens: Int[Tensor, "batch pos"] | None = None,
    **more: int,
) -> dict[str, Any]:
    """Give back what was taken."""
    return {**locals(), **more}


@checked_arguments
class Shelf:
    """A class whose methods are checked too."""

    def __init__(self, boards: Annotated[int, Range(1, 4)]) -> None:
        self.boards = boards

    def __call__(self, book: str) -> str:
        return book

    @classmethod
    def of(cls, boards: Sequence[int]) -> "Shelf":
        return cls(len(boards))


def test_listed_names_pass_and_another_is_named() -> None:
    assert paint("wall") == "wall red 1"
    assert paint("wall", "green", size=2) == "wall green 2"
    assert paint("wall", colours=["red", "green"]) == "wall ['red', 'green'] 1"
    assert paint("wall", None) == "wall None 1"
    for colours in ("gren", ["red", "gren"]):
        with pytest.raises(UnknownNameError, match=r"^unknown colours of paint\(\) 'gren': did you mean 'green'"):
            paint("wall", colours)


@pytest.mark.parametrize(("names", "table"), [(Sweep, SWEEPS), (MetricName, METRICS), (Kind, KINDS)])
def test_types_list_the_names_of_their_tables(names: object, table: dict) -> None:
    assert get_args(names) == tuple(table)


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("count", np.int64(7), 7),
        ("count", torch.tensor(7), 7),
        ("count", 1e4, 10_000),
        ("share", np.float32(0.5), 0.5),
        ("share", torch.tensor(1, dtype=torch.bfloat16), 1.0),
        ("share", 1, 1),
        ("exact", np.True_, True),
        ("where", "a/b", Path("a/b")),
        ("texts", "one text", ("one text",)),
        ("texts", (text for text in ("a", "b")), ("a", "b")),
        ("texts", np.array(["a", "b"]), ("a", "b")),
        ("pair", [1, np.float64(2)], (1, 2.0)),
        ("some", range(2, 5), (2, 3, 4)),
        ("some", torch.arange(3), (0, 1, 2)),
        ("some", 5, (5,)),
        ("listed", (1, 2), [1, 2]),
        ("settings", {"a": 1}, {"a": 1}),
        ("other", np.int8(3), 3),
    ],
)  # fmt: skip
def test_what_is_meant_is_taken(name: str, value: object, taken: object) -> None:
    result = take(**{name: value})[name]
    assert (result, type(result)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("count", True, "a whole number, from 1 to 1,000,000,000, or None, not True"),
        ("count", 0, "or None, not 0"),
        ("count", -3, "not -3"),
        ("count", 2.5, "not 2.5"),
        ("count", 10**5000, "not an int that is too long to show"),
        ("count", "5", "not '5'"),
        ("share", float("nan"), "a number, from 0 to 1, not nan"),
        ("share", float("inf"), "not inf"),
        ("share", torch.ones(2), r"not a Tensor of shape \[2\]"),
        ("share", None, "not None"),
        ("exact", 1, "True or False, not 1"),
        ("texts", {"a", "b"}, "a list, each a text, not {'a', 'b'}"),
        ("texts", ["a", 5], r"not \['a', 5\]"),
        ("texts", b"bytes", "not b'bytes'"),
        ("pair", (1, 2, 3), "not "),
        ("words", 5, "one text or several, not 5"),
        ("settings", {1: 1}, "a dict, or None, not {1: 1}"),
        ("rule", 5, "one of 'a', 'b', or a function, not 5"),
        ("tokens", "abc", r"a tensor \[batch pos\] of whole numbers, or None, not 'abc'"),
        ("tokens", object(), "not an object"),
        ("tokens", torch.nn.Linear(2, 2), "not Linear"),
        ("other", "x", "a whole number, not 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_one_line_that_says_what_is_taken(name: str, value: object, line: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^take\(\): {name} takes [^\n]*{line}[^\n]*$"):
        take(**{name: value})


def test_a_value_that_fits_is_passed_as_it_is() -> None:
    texts, function = ["a", "b"], print
    assert take(texts=texts)["texts"] is texts
    assert take(rule=function)["rule"] is function


def test_calls_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown option of paint\(\) 'colour': did you mean 'colours'"):
        paint("wall", colour="red")
    with pytest.raises(ArgumentError, match=r"^paint\(\): missing a required argument: 'what'; it takes what"):
        paint()
    with pytest.raises(ArgumentError, match=r"^paint\(\): too many positional arguments; it takes"):
        paint("wall", "red", 1, 2)


def test_methods_of_a_class_are_checked() -> None:
    assert Shelf(np.int64(2)).boards == 2
    assert Shelf(1)("book") == "book"
    assert Shelf.of(range(3)).boards == 3
    with pytest.raises(ArgumentError, match=r"^Shelf\(\): boards takes a whole number, from 1 to 4, not 5$"):
        Shelf(5)
    with pytest.raises(ArgumentError, match=r"^of\(\): boards takes a list, each a whole number, not 'x'$"):
        Shelf.of("x")


def test_what_can_be_gone_through_once_is_read_once() -> None:
    texts = ["abcab", "abdab"]
    expected = ag.lenses.roles("planted:induction", texts).facts
    assert ag.lenses.roles("planted:induction", (text for text in texts)).facts == expected
    assert ag.lenses.logit("planted:induction", iter(texts)).facts["inputs"][1]["input"] == "abdab"


ANNOTATIONS = [
    *(int, float, bool, str, Path, Tensor, None, Any, Sequence[Any], Count, Colour, list[int], tuple[int, ...]),
    *(
        tuple[int, float],
        Sequence[str],
        Colour | Sequence[Colour] | None,
        str | Path | None,
        Annotated[float, Range(0, 1)],
    ),
    *(
        Float[Tensor, "..."],
        Shaped[Tensor, "..."] | np.ndarray | float,
        SupportsIndex | slice | None,
        Mapping[str, int],
    ),
]
VALUES = [
    *(0, -1, 1.0, 0.5, math.nan, True, None, "red", "blue", "", Path("~"), Path("x"), [], (), [1, 2], (1, 2), ("red",)),
    *(
        ["red", 3],
        np.float64(0.5),
        np.int64(3),
        np.zeros(2),
        torch.zeros(2),
        torch.zeros(2).long(),
        slice(None),
        {"a": 1},
    ),
    *(iter([1]), range(3), object()),
]


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_the_quick_test_of_a_call_lets_pass_only_what_is_passed_on_as_it_is(annotation: Any) -> None:
    for value in VALUES:
        if _unchanged(annotation)(value):
            assert fitted(value, annotation, "x", "f") is value


@pytest.mark.parametrize(
    ("args", "options"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"a": 2, "b": 3}), ((1,), {"b": 2, "d": 3}), ((), {"b": 2}), (("1",), {"b": 2})],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused_whatever_its_form(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    @checked_arguments
    def add(a: int, b: int = 0, *, c: int = 0) -> int:
        return a + b + c

    assert (add(1), add(1, 2), add(1, b=2), add(a=1, c=2), add(1, 2, c=3)) == (1, 3, 3, 3, 6)
    with pytest.raises((ArgumentError, UnknownNameError)):
        add(*args, **options)
