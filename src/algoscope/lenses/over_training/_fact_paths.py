"""Numbers among the facts of a lens or a verdict, by their path: `roles:heads.0.score`."""

import math
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from algoscope.core.errors import AlgoscopeError, ConfigError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.renaming import warn_renamed
from algoscope.lenses.table import LENSES
from algoscope.subjects.subject import Subject

OVER_TIME = ("timeline", "progress", "induction_phase")  # lenses that measure all checkpoints themselves
FORMER_ROLES = {"self": "current-token", "same-token": "duplicate-token"}
SUGGESTED = 4  # paths suggested by an error message

Measures = Mapping[str, Callable[[Subject], Finding]]
"""Measures other than lenses that can be tracked, by name: verdicts, which lenses cannot import, and a caller's own."""


def split(fact: str, measures: Measures) -> tuple[str, str]:
    """`LENS:FACT` as the two, the lens and a role by their present names.

    Raises ConfigError for another form, UnknownNameError for a name that is neither lens nor measure.
    """
    name, colon, path = fact.partition(":")
    if not colon or not path:
        raise ConfigError(f"{fact!r} is not a fact of a lens: write LENS:FACT, such as certify:accuracy")
    if name in measures:
        return name, path
    if name not in LENSES:
        raise UnknownNameError("lens or measure", name, [*LENSES, *measures])
    name, parts = LENSES.current(name), path.split(".")
    for former in FORMER_ROLES.keys() & parts if name == "roles" else ():
        warn_renamed("role", former, FORMER_ROLES[former])
    return name, ".".join(FORMER_ROLES.get(part, part) for part in parts) if name == "roles" else path


def measure_of(name: str, measures: Measures) -> Callable[[Subject], Finding]:
    """The measure or lens of that name.

    Raises ConfigError for a lens that measures checkpoints itself, or that needs more arguments than a model.
    """
    if name in measures:
        return measures[name]
    if name in OVER_TIME:
        raise ConfigError(f"{name} measures all checkpoints itself: use its series, `algoscope lens {name}`")
    lens: Callable[[Subject], Finding] = LENSES.load(name)
    needed = [p.name for p in list(signature(lens).parameters.values())[1:] if p.default is Parameter.empty]
    if needed:
        raise ConfigError(f"{name} needs more than a model ({', '.join(needed)}): it cannot be tracked")
    return lens


def numbers_of(measure: Callable[[Subject], Finding], subject: Subject) -> dict[str, float]:
    """All numbers among a measure's facts of a subject, by path; true is 1, false 0, null NaN.

    Passes on the measure's errors.
    """
    return dict(_leaves(measure(subject).facts))


def numbers_or_none(measure: Callable[[Subject], Finding], subject: Subject) -> dict[str, float]:
    """As `numbers_of`; empty if the measure rejects the model."""
    try:
        return numbers_of(measure, subject)
    except AlgoscopeError:
        return {}


def check(name: str, path: str, numbers: Mapping[str, float]) -> None:
    """Raises ConfigError if a path is not among the numbers of its measure."""
    if path in numbers:
        return
    within = [other for other in numbers if other.startswith(f"{path}.")]
    close = within or get_close_matches(path, numbers, n=SUGGESTED, cutoff=0.5)
    known = close or sorted(numbers, key=lambda other: (other.count("."), other))
    hint = ", ".join(known[:SUGGESTED]) or "it has none"
    raise ConfigError(
        f"'{name}:{path}' is not a number among the facts of the last checkpoint; numbers of {name}: {hint}"
    )


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
