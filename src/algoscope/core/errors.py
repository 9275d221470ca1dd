"""Errors that a user can cause. The message is one line: what is wrong, which value, and how to fix it.

The command line prints the line on standard error and exits with `exit_code`. Violated invariants of
our own code are `assert`s and show a traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AlgoscopeError(ValueError):
    """Invalid input. The message is one line: what is wrong, which value, how to fix it."""

    exit_code = 2


class UnknownNameError(AlgoscopeError):
    """A name that is not registered. The message lists the known names and suggests the closest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(names) or 'none'}")


class ConfigError(AlgoscopeError):
    """A config field that does not exist, or an illegal value of one."""


class VocabularyError(AlgoscopeError):
    """Text that has characters outside the vocabulary, is longer than the context, or is no prompt of the task."""


class TaskMismatchError(AlgoscopeError):
    """A task that does not fit the model or the request."""


class SubjectError(AlgoscopeError):
    """A name that does not identify a model, or a model that does not support the request."""


class EditError(AlgoscopeError):
    """An edit that cannot be applied at its site. No edit is skipped silently."""


class PairingError(AlgoscopeError):
    """A clean and a corrupt input that cannot be compared, such as inputs of different lengths."""


class CheckpointError(AlgoscopeError):
    """Weights that are missing, truncated, or do not fit their config."""


class RunFolderError(AlgoscopeError):
    """A run folder that is missing, in use, unreadable or not writable."""


class DivergedError(AlgoscopeError):
    """A loss or a weight that is not finite."""


class DrawingError(AlgoscopeError):
    """A figure that cannot be drawn or saved."""


class Interrupted(AlgoscopeError):  # noqa: N818  # not an error: the user asked for it
    """Stopped by the user. The message says what was saved and how to resume."""

    exit_code = 3
