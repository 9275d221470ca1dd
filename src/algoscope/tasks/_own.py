"""A class of one's own as it is defined: its members and their names, and the file that it comes from."""

import hashlib
import inspect
import marshal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

from algoscope.core.errors import AlgoscopeError, TaskError, shown
from algoscope.tasks._members import FAULTS, failed

MEMBERS = ("vocabulary", "prompts", "draw", "answer", "classes", "edge_cases", "variables", "corrupt", "parts")
VALUES = ("vocabulary", "parts")  # members that are no functions
LISTS = ("prompts", "edge_cases")  # members that may be lists in place of functions that return them
PLAIN = (*VALUES, "kind", "ordinals", "sources", "answer_names", "uniform", "whole_numbers", "model_config", "source")
ALIKE = 0.8  # similarity from which a name is taken for a misspelt member


@dataclass(frozen=True)
class Source:
    """Where the code of a class stands, and a hash of it: of the file, or where there is none of the class."""

    path: Path | None
    sha256: str
    is_importable: bool  # from the file alone, by another process, without running a script again


def source_of(kind: type) -> Source:
    """The file that defines a class, as it is now. Of a notebook or a prompt, the text or the code of the class."""
    module = sys.modules.get(kind.__module__)
    path = getattr(module, "__file__", None)
    if module is not None and path is not None and Path(path).is_file():
        is_alone = kind.__module__ != "__main__" and not module.__package__
        return Source(Path(path).absolute(), hashlib.sha256(Path(path).read_bytes()).hexdigest(), is_alone)
    try:
        text = inspect.getsource(kind).encode()
    except (OSError, TypeError):
        functions = {name: member.__code__ for name, member in vars(kind).items() if isinstance(member, FunctionType)}
        text = b"".join(name.encode() + marshal.dumps(code) for name, code in sorted(functions.items()))
    return Source(None, hashlib.sha256(text).hexdigest(), False)


def prepare(kind: type, interface: type) -> None:
    """Make what a class gives fit for use, before its fields are read: `kind` is its name, and a vocabulary or parts
    may be annotated, a list, a property or a method.

    Raises TaskError for a name that is no member, or one of a task that cannot be given.
    """
    namespace = dict(vars(kind))
    if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
        _annotate(kind, dict.fromkeys(MEMBERS))
        _check_names(kind, interface)
        kind.source = source_of(kind)  # type: ignore[attr-defined]
    elif "kind" not in namespace.get("__annotations__", {}):
        _annotate(kind, {})
    for name in VALUES:
        if name in namespace and kind.completed is interface.completed:  # type: ignore[attr-defined]
            setattr(kind, name, _value(kind, name, namespace[name]))
    for name in LISTS:
        if name in namespace and not callable(namespace[name]) and not hasattr(namespace[name], "__get__"):
            setattr(kind, name, _returning(_listed(kind, name, namespace[name])))
    if "draw" in namespace:
        kind.uniform = False  # type: ignore[attr-defined]


def _listed(kind: type, name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TaskError(f"{kind.__name__}.{name} is {shown(value)}: give a list of prompts")
    return tuple(value)


def _returning(values: tuple[Any, ...]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda task: values


def _annotate(kind: type, no_fields: Mapping[str, None]) -> None:
    name = str(vars(kind).get("kind", kind.__name__))
    annotations = {key: of for key, of in vars(kind).get("__annotations__", {}).items() if key not in no_fields}
    kind.__annotations__ = annotations | {"kind": Literal[name]}
    kind.kind = name  # type: ignore[attr-defined]


def _check_names(kind: type, interface: type) -> None:
    if "__init__" in vars(kind):
        raise TaskError(
            f"{kind.__name__}.__init__: a task is made of its fields: write them in the class, such as `n: int = 3`"
        )
    fields = [name for name in kind.__annotations__ if name != "kind"]
    for name in dict.fromkeys((*vars(kind), *fields)):
        if name.startswith("_") or name in MEMBERS:
            continue
        if not hasattr(interface, name):
            if close := get_close_matches(name, MEMBERS, n=1, cutoff=ALIKE):
                raise TaskError(
                    f"{kind.__name__}.{name}: did you mean {close[0]!r}? a name of your own that is close to it starts "
                    "with an underscore"
                )
        elif name in fields or not (
            name in PLAIN or callable(vars(kind)[name]) or hasattr(vars(kind)[name], "__get__")
        ):
            raise TaskError(f"{kind.__name__}.{name}: every task has a member of that name: choose another")


def _value(kind: type, name: str, value: Any) -> Any:
    """A member that is no function: a tuple or a mapping; computed ones once for each task."""
    function: Callable[[Any], Any] | None = getattr(value, "fget", getattr(value, "func", None))
    function = value if isinstance(value, FunctionType) else function
    if function is None:
        return _plain(name, value)

    def computed(task: Any) -> Any:
        try:
            return _plain(name, function(task))
        except AlgoscopeError:
            raise
        except FAULTS as error:
            raise failed(kind.__name__, name, error) from error

    cached = cached_property(computed)
    cached.__set_name__(kind, name)
    return cached


def _plain(name: str, value: Any) -> Any:
    return tuple(value) if name == "vocabulary" and isinstance(value, Sequence) else value


def check_members(task: Any) -> None:
    """Raise TaskError for a task that lacks a member, or whose first prompt and answer contradict what it says."""
    check_vocabulary(task.kind, task.vocabulary)
    for name in MEMBERS:
        if name not in VALUES and not callable(value := getattr(task, name)):
            raise TaskError(f"{task.kind}.{name} is {shown(value)}: write it as a method, def {name}(self, ...)")
    if not task.gives("answer"):
        raise TaskError(f"{task.kind} gives no answer(self, prompt): the tokens that are right for a prompt")
    if not (task.gives("prompts") or task.gives("draw")):
        raise TaskError(f"{task.kind} gives neither prompts(self), every prompt, nor draw(self, random), one prompt")
    if task.n_ctx and task.gives("parts"):  # its first prompt and answer have been read
        _ = task.all_parts


def check_vocabulary(kind: str, vocabulary: object) -> None:
    """Raise TaskError for a vocabulary whose tokens cannot be told apart in a text."""
    if not isinstance(vocabulary, tuple) or not vocabulary:
        raise TaskError(f"{kind}.vocabulary is {shown(vocabulary)}: give the tokens as a tuple of texts")
    several = any(isinstance(token, str) and is_word(token) for token in vocabulary)
    for number, token in enumerate(vocabulary):
        if not isinstance(token, str):
            raise TaskError(f"{kind}.vocabulary: token {number} is {shown(token)}, not a text: write {str(token)!r}")
        if not token or (several and token.split() != [token]):
            raise TaskError(
                f"{kind}.vocabulary: token {number} is {token!r}; tokens of several letters are written with spaces "
                "between them, so none is empty or has a space in it"
            )
    if len(set(vocabulary)) < len(vocabulary):
        twice = next(token for number, token in enumerate(vocabulary) if token in vocabulary[:number])
        raise TaskError(f"{kind}.vocabulary has the token {twice!r} twice")


def is_word(token: str) -> bool:
    """Whether a token has several letters, and is no special one such as `<EOS>`."""
    return len(token) > 1 and not (token[0] == "<" and token[-1] == ">")


def covering(kind: str, parts: object, prompt_length: int, n_read: int) -> dict[str, slice]:
    """Named stretches of a prompt in order, with names for the positions of the sequence that they leave out.

    Raises TaskError where they overlap or reach beyond the prompt.
    """
    if not isinstance(parts, Mapping):
        raise TaskError(
            f"{kind}.parts is {shown(parts)}: give a dict from names to slices, such as {{'a': slice(0, 2)}}"
        )
    name_of: dict[int, str] = {}
    for name, part in parts.items():
        prompt = range(prompt_length)
        positions = prompt[part] if isinstance(part, slice) else part if isinstance(part, range) else [part]
        for pos in positions:
            if not isinstance(pos, int) or pos not in prompt or pos in name_of:
                raise TaskError(
                    f"{kind}.parts: {name!r} is {shown(part)}: parts are slices of the {prompt_length} positions of a "
                    "prompt, and none is in two of them"
                )
            name_of[pos] = str(name)
    for pos in range(n_read):
        name_of.setdefault(pos, f"token {pos + 1}" if pos < prompt_length else "answer so far")
    names = dict.fromkeys(name_of[pos] for pos in range(n_read))
    spans = {name: [pos for pos in range(n_read) if name_of[pos] == name] for name in names}
    for name, covered in spans.items():
        if covered[-1] - covered[0] + 1 != len(covered):
            raise TaskError(f"{kind}.parts: {name!r} is no stretch of neighbouring positions: {covered}")
    return {name: slice(covered[0], covered[-1] + 1) for name, covered in spans.items()}
