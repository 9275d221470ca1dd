"""Any number that a lens or a verdict says of a model, by the path to it among its facts: `roles:heads.0.score`."""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from algoscope.core.errors import AlgoscopeError, ConfigError
from algoscope.lenses.over_training.followable import FOLLOWED
from algoscope.subjects.subject import Subject

OVER_TIME = ("timeline", "progress", "induction_phase")  # lenses that go over the checkpoints themselves
SUGGESTED = 4  # paths that an error names


def numbers_of(name: str, subject: Subject) -> dict[str, float]:
    """Every number among the facts that the lens or verdict called `name` says of a subject, by its path; a truth is 1
    or 0, what is null is NaN.

    Raises UnknownNameError for a name that there is not, ConfigError for a lens that goes over checkpoints itself or
    asks for more than a model, and what the lens raises.
    """
    look = FOLLOWED.load(name)
    if name in OVER_TIME:
        raise ConfigError(f"{name} goes over the checkpoints itself: read its own series, `algoscope lens {name}`")
    needed = [p.name for p in list(signature(look).parameters.values())[1:] if p.default is Parameter.empty]
    if needed:
        raise ConfigError(f"{name} asks for more than a model ({', '.join(needed)}): it cannot be followed")
    return dict(_leaves(look(subject).facts))


def numbers_or_none(name: str, subject: Subject) -> dict[str, float]:
    """As `numbers_of`; nothing where the lens refuses the model."""
    try:
        return numbers_of(name, subject)
    except AlgoscopeError:
        return {}


def split(fact: str) -> tuple[str, str]:
    """`LENS:FACT` as the two. Raises ConfigError where it is not written so, UnknownNameError for another lens."""
    name, colon, path = fact.partition(":")
    if not colon or not path:
        raise ConfigError(f"{fact!r} names no fact of a lens: write LENS:FACT, such as certify:accuracy")
    FOLLOWED[name]  # raises with the known names
    return name, path


def check(fact: str, numbers: Mapping[str, float]) -> None:
    """Raises ConfigError where a path is not among the numbers that its lens says."""
    name, path = split(fact)
    if path in numbers:
        return
    within = [other for other in numbers if other.startswith(f"{path}.")]
    close = within or get_close_matches(path, numbers, n=SUGGESTED, cutoff=0.5)
    known = close or sorted(numbers, key=lambda other: (other.count("."), other))
    hint = ", ".join(known[:SUGGESTED]) or "it has none"
    raise ConfigError(f"{fact!r} is not a number that {name} says of the last checkpoint; numbers there: {hint}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        inside = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(str(i), inner) for i, inner in enumerate(value)]
    elif value is None or isinstance(value, int | float):
        yield path, math.nan if value is None else float(value)
        return
    else:
        return
    for key, inner in inside:
        yield from _leaves(inner, f"{path}.{key}" if path else key)
