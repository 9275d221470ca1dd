"""Deprecated names of function options and table entries, which still work and warn."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class RenamedWarning(FutureWarning):
    """A former name was used; it still works."""


def warn_renamed(kind: str, old: str, new: str) -> None:
    """Warn of a former name, at the line that used it."""
    warnings.warn(f"the {kind} {old!r} is now called {new!r}; the old name will go", RenamedWarning, stacklevel=3)


def renamed_options(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose keyword options had other names: `@renamed_options(n_random="n_inputs")`.

    The former names work and warn; the signature shows the current ones only. The mapping is the attribute `renamed` of
    the decorated function, from which the command line makes hidden options. Raises TypeError where both names are
    given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got {new!r} and its former name {old!r}")
                warn_renamed(f"option of {function.__name__}", old, new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        called.renamed = dict(new_names)  # type: ignore[attr-defined]
        return called

    return decorate
