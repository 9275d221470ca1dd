"""What users give for each parameter: values of the right type, the same in other forms, and of wrong types."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hypothesis import strategies as st

WORDS = [" Paris", "Rome", "The", "a", "é", "東", "1", " 1", "</s>", "7", "b", ""]
FREE = [
    "The city of Paris", "The city of Rome", "Rome", "a", "", " ", "東 🙂", "a\nb\t\x1b[31m\x00", "[/b]<b>&{x}$y$",
    "x" * 400,
]  # fmt: skip
LETTERS = ["abcab", "abcdeabcde", "a", "", "zzzz", "ab1"]
PROMPTS = {  # by task or vocabulary, right and wrong ones
    "addition": ["1+2=", "9+9=", "1+2", "12+34=", "=+"],
    "addition3": ["123+456=", "999+001=", "123+456", "1+2=", "=+"],
    "copying": ["abcabc", "ab", "", "xyz"],
    "modular": ["1 2 =", "3 4", "58 58 =", "99 99 =", "1+2"],
    "reversal": ["abcde=", "edcba", "abc=", "", "zzzzz"],
    "letters": LETTERS,
    "ids": ["1 2 3", "5", "", "480", "-1", "a", "1.5", "+3", "٣"],
    "free": FREE,
}
WRONG = [
    None, 5, -1, 0, 3.5, float("nan"), float("inf"), True, "", "\ud800", "a\nb", [], [None], [1, 2], (), {}, {"a": 1},
    object(), lambda *_: 0, int, np.int64(3), np.float32(0.5), np.array([1, 2]), torch.tensor(1), torch.tensor([[1]]),
    Path("nowhere"), slice(0, 2), b"bytes", range(3), 1j,
]  # fmt: skip
NAMES_OF_RUNS = [
    "good", "a/b", "../esc", "sp ace", "a[b]", ".", "..", "-x", "x" * 300, "a\nb", "é", "/abs", "a@3", "a?b", "~",
    "a" * 100,
]  # fmt: skip
ODD_FOLDERS = ["r@home", "what?", "a[/b]c", "sp ace", "per%cent", "hash#1", "größe", "a'b", "x;y", "a:b"]
HUGE = 10**30
COUNTS = {"n_inputs": 40, "per_class": 8, "sample": 30, "role_inputs": 12, "limit_counterexamples": 5, "n_threads": 2}
"""Parameters that say how many, and what is enough of them in a walk."""


class Forms:
    """A right value, and the same in forms that mean the same."""

    def __init__(self, plain: Any, *same: Any) -> None:
        self.plain, self.same = plain, same

    def __repr__(self) -> str:
        return f"{self.plain!r}"


def number(value: int) -> Forms:
    return Forms(value, np.int64(value), np.int32(value))


def share(value: float) -> Forms:
    return Forms(value, np.float64(value))


def texts(prompts: list[str]) -> st.SearchStrategy[Forms]:
    several = st.lists(st.sampled_from(prompts), min_size=1, max_size=3)
    return several.map(lambda chosen: Forms(chosen, tuple(chosen), *(chosen if len(chosen) == 1 else ())))


def right(name: str, parameter: inspect.Parameter, prompts: list[str]) -> st.SearchStrategy[Forms]:
    """Values that a parameter of a lens or a verdict is meant for."""
    listed = tuple(_names(parameter.annotation))
    if name in ("inputs", "clean", "corrupt"):
        return texts(prompts)
    if name in ("target", "rival"):
        return st.sampled_from([Forms(word) for word in WORDS] + [number(4), Forms(HUGE)])
    if name in COUNTS:
        return st.sampled_from([number(COUNTS[name]), number(1), number(2)])
    if name == "copies" or name == "length":
        return st.sampled_from([Forms(None), number(2), number(3), number(5), number(0), number(-2)])
    if name == "top":
        return st.sampled_from([*map(number, (1, 3, 5, 100)), Forms(HUGE)])
    if name == "seed":
        return st.sampled_from([number(0), number(7), number(-1), Forms(HUGE)])
    if name == "metric":
        own = Forms(lambda logits: logits.float().mean(dim=(-1, -2)))
        return st.sampled_from([*map(Forms, listed or ("logit_diff", "kl")), own])
    if name == "heads":
        pair = Forms(["L0H0", "L1H1"], ("L0H0", "L1H1"))
        return st.sampled_from([Forms(["L0H0"], "L0H0"), pair, Forms(["L9H9"])])
    if listed and "Sequence" in str(parameter.annotation):
        several = st.lists(st.sampled_from(listed), min_size=1, max_size=2, unique=True)
        return several.map(lambda chosen: Forms(chosen, tuple(chosen), *(chosen if len(chosen) == 1 else ())))
    if listed:
        return st.sampled_from(listed).map(Forms)
    if isinstance(parameter.default, bool):
        return st.booleans().map(Forms)
    if isinstance(parameter.default, float):
        return st.sampled_from([0.0, 0.3, 1.0]).map(share)
    return st.sampled_from(["", "carry", "nonsense", "logits", "L1H0", None]).map(Forms)


def _names(annotation: Any) -> list[str]:
    """The names that a `Literal` at any depth of an annotation lists."""
    members = get_args(annotation)
    if not members:
        return [annotation] if isinstance(annotation, str) else []
    return [name for member in members for name in _names(member)]


@st.composite
def calls(
    draw: st.DrawFn, function: Callable[..., Any], prompts: list[str], skip: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of a lens, and the same in another form."""
    plain, same = {}, {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        required = parameter.default is parameter.empty or name in COUNTS
        if name not in skip and (required or draw(st.integers(0, 3)) == 0):
            forms = draw(right(name, parameter, prompts))
            plain[name] = forms.plain
            same[name] = draw(st.sampled_from([forms.plain, *forms.same]))
    return plain, same
