"""Errors that a user can cause. Each says what is wrong, which value, and the way out, on one line.

The command line prints the line on standard error and exits with `exit_code`. Broken promises of our
own code are `assert`s and stay tracebacks.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AlgoscopeError(ValueError):
    """Bad input. The message is one line: what, which value, the way out."""

    exit_code = 2


class UnknownNameError(AlgoscopeError):
    """A name that is not in one of our tables."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(names) or 'none'}")


class ConfigError(AlgoscopeError):
    """A field that does not exist, or a value it cannot take."""


class VocabularyError(AlgoscopeError):
    """Text that the task's vocabulary or context cannot hold."""


class TaskMismatchError(AlgoscopeError):
    """A task and a model that do not belong together."""


class SubjectError(AlgoscopeError):
    """A string that does not name a model, or a model that cannot do what is asked."""


class EditError(AlgoscopeError):
    """An edit that cannot be made where it is asked for. It is never left out silently."""


class PairingError(AlgoscopeError):
    """Inputs that cannot be compared with each other."""


class CheckpointError(AlgoscopeError):
    """Weights that are missing, truncated, or do not fit the config beside them."""


class RunFolderError(AlgoscopeError):
    """A run folder that is missing, in use, unreadable, or cannot be written."""


class DivergedError(AlgoscopeError):
    """A loss that is not a finite number."""


class DrawingError(AlgoscopeError):
    """A picture that cannot be drawn here."""


class Interrupted(AlgoscopeError):  # noqa: N818  # not an error: the user asked for it
    """Stopped by the user. The message says what is kept and how to go on."""

    exit_code = 3
