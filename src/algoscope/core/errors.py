"""Errors that a user can cause. The message is one line: what is wrong, which value, and how to fix it.

The command line prints the line on standard error and exits with `exit_code`. Violated invariants of
our own code are `assert`s and show a traceback.
"""

import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1200  # characters of a message
LONGEST_VALUE = 100  # characters of a value in a message
_short = reprlib.Repr()
_short.maxstring = _short.maxother = LONGEST_VALUE


class AlgoscopeError(ValueError):
    """Invalid input. The message is one line: what is wrong, which value, how to fix it."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(shortened(one_line(message), LONGEST))


class UnknownNameError(AlgoscopeError):
    """A name that is not registered. The message lists the known names and suggests the closest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name[:LONGEST_VALUE], names, n=1) if isinstance(name, str) else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {shown(name)}: {hint}known: {', '.join(names) or 'none'}")

    def __reduce__(self) -> tuple[object, ...]:  # its arguments are not its message: other processes rebuild it so
        return _rebuilt, (type(self), str(self))


def _rebuilt(kind: type[AlgoscopeError], message: str) -> AlgoscopeError:
    error = kind.__new__(kind)
    AlgoscopeError.__init__(error, message)
    return error


def one_line(text: str) -> str:
    """A text on one line: line ends become spaces, other control characters are written as Python writes them."""
    joined = " ".join(part.strip() for part in str(text).splitlines() if part.strip())
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: repr(found[0])[1:-1], joined)


def shortened(text: str, longest: int) -> str:
    """A text without its middle where it is longer than `longest`."""
    kept = (longest - 5) // 2
    return text if len(text) <= longest else f"{text[:kept]} ... {text[-kept:]}"


def shown(value: object) -> str:
    """A value as a message shows it: short, and of an array only its shape."""
    kind, shape = with_article(type(value).__name__), getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"{kind} of shape {list(shape)}"
    try:
        text = _short.repr(value)
    except ValueError:  # a number of thousands of digits
        return f"{kind} that is too long to show"
    return kind if len(text.splitlines()) > 1 or " at 0x" in text else text


def some_of(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def with_article(noun: str) -> str:
    """`a Run`, `an int`."""
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"


class ConfigError(AlgoscopeError):
    """A config field that does not exist, or an illegal value of one."""


class ArgumentError(ConfigError):
    """An argument of another type or range than the function takes, or one that is missing."""


class VocabularyError(AlgoscopeError):
    """Text that has characters outside the vocabulary, is longer than the context, or is no prompt of the task."""


class TaskMismatchError(AlgoscopeError):
    """A task that does not fit the model or the request."""


class TaskError(AlgoscopeError):
    """A task of one's own that contradicts itself, whose code fails, or whose code has to be named."""


class SubjectError(AlgoscopeError):
    """A name that does not identify a model, or a model that does not support the request."""


class OwnCodeError(AlgoscopeError):
    """A file of the user's that cannot be run, or that does not define what it was named for."""


class EditError(AlgoscopeError):
    """An edit that cannot be applied at its site. No edit is skipped silently."""


class PairingError(AlgoscopeError):
    """A clean and a corrupt input that cannot be compared, such as two with the same answer."""


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
