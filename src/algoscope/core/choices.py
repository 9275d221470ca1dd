"""Options with a fixed set of values: `Literal` in the signature lists them, any other raises UnknownNameError."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from algoscope.core.errors import UnknownNameError

P = ParamSpec("P")
R = TypeVar("R")


def checked_choices(**kinds: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it raises UnknownNameError for an option value that its `Literal` does not list.

    An option may be optional, or a sequence of such names. `kinds` renames options in the error message:
    `@checked_choices(sites="sweep")`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        listed = {name: dict.fromkeys(_names(parameter.annotation)) for name, parameter in signature.parameters.items()}

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            for name, known in listed.items():
                value = arguments.get(name) or () if known else ()
                for one in (value,) if isinstance(value, str) else value:
                    if one not in known:
                        raise UnknownNameError(kinds.get(name, name), one, known)
            return function(*args, **kwargs)

        return called

    return decorate


def _names(annotation: Any) -> tuple[str, ...]:
    """All names in the `Literal`s of an annotation, at any depth."""
    members = get_args(annotation)
    return members if get_origin(annotation) is Literal else sum(map(_names, members), ())
