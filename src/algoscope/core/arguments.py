"""Arguments of public functions, checked against the annotations: taken, converted where nothing is lost, or refused in
one line that says what the function takes.

    @checked_arguments
    def logit(subject: Named, inputs: Texts, *, top: Count = 5): ...

A number of NumPy or PyTorch becomes a number of Python, one item becomes a list of one, a list a tuple, and a path a
string or a `Path`, as the annotation asks. A bool is no number, and NaN none either.
"""

import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsIndex, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from algoscope.core.errors import ArgumentError, UnknownNameError, shown, with_article
from algoscope.core.files import user_path

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """The legal numbers of an annotation, such as `Annotated[int, Range(1)]`; None: no limit."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.low} or more" if self.high is None else f"at most {self.high:,}"
        return f"from {self.low:,} to {self.high:,}"

    def __contains__(self, number: float) -> bool:
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)


@dataclass(frozen=True)
class Form:
    """How messages describe the values of an annotation, such as `Annotated[str | None, Form("a text")]`."""

    text: str


MOST = 10**9
FREE = (Any, object, Sequence[Any], Iterable[Any])  # whatever it is, the function itself reads it
Count = Annotated[int, Range(1, MOST)]
Natural = Annotated[int, Range(0, MOST)]
Share = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Folder = str | Path | None


class _Unfit(Exception):  # noqa: N818  # never leaves this module
    """A value that an annotation does not describe."""


def checked_arguments(of: F) -> F:
    """Decorate a function, or a class with its public methods, so that its arguments are as its annotations say.

    Raises:
        UnknownNameError: when called, for an option that does not exist, and for a name that a `Literal` does not list.
        ArgumentError: when called, for any other argument that does not fit, or a missing one.
    """
    if not isinstance(of, type):
        return cast(F, _checked(of))
    for name, member in list(vars(of).items()):
        private = name.startswith("_") and name not in ("__init__", "__call__")
        if private or hasattr(member, "checked"):
            continue
        if isinstance(member, types.FunctionType):
            setattr(of, name, _checked(member))
        elif isinstance(member, classmethod):
            setattr(of, name, classmethod(_checked(member.__func__)))
    return of


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.cache
    def annotations() -> dict[str, Any]:
        return get_type_hints(function, include_extras=True)

    @functools.cache
    def fits() -> Callable[[tuple[Any, ...], Mapping[str, Any]], bool]:
        return _fitting_calls(signature, annotations())

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        if fits()(args, options):
            return function(*args, **options)
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise _no_call(where, signature, options, error) from None
        expected = annotations()
        for name, value in bound.arguments.items():
            if name not in expected:  # self
                continue
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                value.update({key: fitted(value[key], expected[name], key, where) for key in value})
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(fitted(one, expected[name], name, where) for one in value)
            else:
                bound.arguments[name] = fitted(value, expected[name], name, where)
        return function(*bound.args, **bound.kwargs)

    called.checked = True  # type: ignore[attr-defined]
    return called


def _no_call(
    where: str, signature: inspect.Signature, options: Collection[str], error: TypeError
) -> UnknownNameError | ArgumentError:
    """Why a function cannot be called with these arguments."""
    known = [name for name in signature.parameters if name != "self"]
    for option in options:
        if option not in known:
            return UnknownNameError(f"option of {where}()", option, known)
    return ArgumentError(f"{where}(): {error}; it takes {', '.join(known) or 'no arguments'}")


def fitted(value: object, annotation: Any, name: str, where: str) -> Any:
    """The value as the annotation asks. Raises ArgumentError, or UnknownNameError for a name that is not listed."""
    value = tuple(value) if isinstance(value, Iterator) else value  # it can be gone through once only
    try:
        return _fit(value, annotation, convert=True)
    except _Unfit:
        known = _names(annotation)
        words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        for word in words if known else []:
            if isinstance(word, str) and word not in known:
                raise UnknownNameError(f"{name} of {where}()", word, known) from None
        raise ArgumentError(f"{where}(): {name} takes {_form(annotation)}, not {shown(value)}") from None


# ---------------------------------------------------------------------- values


def _fit(value: Any, annotation: Any, convert: bool) -> Any:
    """The value, converted where `convert` allows it. Raises _Unfit."""
    origin, members = _parts(annotation)
    if annotation in FREE:
        return value
    if origin is Annotated:
        number = _fit(value, members[0], convert)
        if any(number is not None and number not in limit for limit in members[1:] if isinstance(limit, Range)):
            raise _Unfit
        return number
    if origin in (Union, types.UnionType):
        return _first(value, members, convert)
    if origin is Literal:
        return _only(any(value is known or (isinstance(value, str) and value == known) for known in members), value)
    if annotation in (int, float, bool):
        return _number(value, annotation, convert)
    if origin in (tuple, list, Sequence, Iterable):
        return _items(value, origin, members, convert)
    if origin is not None and issubclass(origin, Mapping):
        fits = isinstance(value, Mapping) and all(map(_fits, value, repeat(members[0])))
        return _only(fits and all(map(_fits, value.values(), repeat(members[1]))), value)
    if origin is Callable:
        return _only(callable(value), value)
    if annotation is Path and convert and isinstance(value, str | os.PathLike):
        return user_path(value)
    if convert and getattr(annotation, "array_type", None) is np.ndarray and annotation.__name__.startswith("Float"):
        value = _array(value)
    kind = types.NoneType if annotation is None else annotation
    return _only(not isinstance(kind, type) or isinstance(value, kind), value)


@functools.cache
def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a generic annotation is made of: `list[int]` as (list, (int,)). Kept, as sweeps make thousands of edits."""
    return get_origin(annotation), get_args(annotation)


def _only(fits: bool, value: Any) -> Any:
    if not fits:
        raise _Unfit
    return value


def _fits(value: Any, annotation: Any) -> bool:
    try:
        _fit(value, annotation, convert=False)
    except _Unfit:
        return False
    return True


def _first(value: Any, members: Sequence[Any], convert: bool) -> Any:
    """The value as the first member of a union that it fits, unconverted where that is possible."""
    for conversion in (False, True)[: 1 + convert]:
        for member in members:
            try:
                return _fit(value, member, conversion)
            except _Unfit:
                continue
    raise _Unfit


def _number(value: Any, kind: type, convert: bool) -> Any:
    """A finite number of the kind; an int is a float, a bool is neither."""
    if convert and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or kind is bool:
        return _only(isinstance(value, bool) and kind is bool, value)
    if isinstance(value, int):
        return value
    if not isinstance(value, float) or not math.isfinite(value) or (kind is int and not value.is_integer()):
        raise _Unfit
    return int(_only(convert, value)) if kind is int else value


def _array(value: Any) -> Any:
    """Lists of numbers, or an array of whole numbers, as an array of floats."""
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        raise _Unfit from None


def _items(value: Any, kind: Any, members: Sequence[Any], convert: bool) -> Any:
    """A sequence whose items fit: the value itself where it is one, else a list or a tuple of its items."""
    given = value
    if not isinstance(value, list | tuple):
        value = _only(convert, _listed(value))
    every = kind is not tuple or (len(members) == 2 and members[1] is ...)
    if not every and len(value) != len(members):
        raise _Unfit
    items = [_fit(one, members[0] if every else members[i], convert) for i, one in enumerate(value)]
    fits = isinstance(given, list | tuple) and (kind in (Sequence, Iterable) or isinstance(given, kind))
    if fits and all(new is old for new, old in zip(items, value, strict=True)):
        return given
    return items if kind is list else tuple(items)


def _listed(value: Any) -> list[Any]:
    """The items of something that can be gone through in order, such as a range; one item is a list of one."""
    if isinstance(value, str | bytes | Mapping | set | frozenset | os.PathLike) or not hasattr(value, "__iter__"):
        return [value]
    return value.tolist() if getattr(value, "ndim", 0) == 1 else [value] if hasattr(value, "ndim") else list(value)


# ---------------------------------------------------------------------- calls that need no conversion

Test = Callable[[Any], bool]


def _fitting_calls(
    signature: inspect.Signature, annotations: Mapping[str, Any]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], bool]:
    """A quick test of the arguments of a call that is true only where `fitted` would return each of them as it is.

    Sweeps make thousands of edits and of runs of tiny models, where binding and converting would take longer than the
    computation.
    """
    parameters = list(signature.parameters.values())
    tests = {one.name: _unchanged(annotations.get(one.name, Any)) for one in parameters}
    in_order = tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
    by_name = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    required = {one.name for one in parameters if one.default is one.empty}
    is_open = any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)

    def fits(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        if is_open or len(args) > len(in_order):
            return False
        first = in_order[: len(args)]
        for name, value in chain(zip(first, args, strict=True), options.items()):
            if name not in tests or not tests[name](value):
                return False
        return by_name.issuperset(options) and options.keys().isdisjoint(first) and required <= {*first, *options}

    return fits


@functools.cache
def _unchanged(annotation: Any) -> Test:
    """A quick test that is true only of values that fit an annotation as they are; false also where it cannot tell."""
    origin, members = _parts(annotation)
    if annotation in FREE:
        return lambda value: not isinstance(value, Iterator)
    if annotation in (None, types.NoneType):
        return lambda value: value is None
    if origin is Annotated:
        test, limits = _unchanged(members[0]), [one for one in members[1:] if isinstance(one, Range)]
        if not limits:
            return test
        return lambda value: test(value) and (value is None or all(value in limit for limit in limits))
    if origin in (Union, types.UnionType):
        tests = sorted(map(_unchanged, members), key=lambda test: test is not _unchanged(None))
        return lambda value: any(test(value) for test in tests)
    if origin is Literal:
        names = frozenset(name for name in members if isinstance(name, str))
        return lambda value: type(value) is str and value in names
    if annotation in (str, int, bool):
        return lambda value: type(value) is annotation
    if annotation is float:
        return lambda value: type(value) is int or (type(value) is float and math.isfinite(value))
    if annotation is SupportsIndex:
        return lambda value: type(value) is int
    if origin in (list, Sequence, Iterable) or (origin is tuple and members[1:] == (...,)):
        kinds, item = (list, tuple) if origin in (Sequence, Iterable) else (origin,), _unchanged(members[0])
        return lambda value: isinstance(value, kinds) and all(map(item, value))
    if origin is tuple:
        each = [_unchanged(member) for member in members]
        return lambda value: (
            type(value) is tuple
            and len(value) == len(each)
            and all(test(item) for test, item in zip(each, value, strict=True))
        )
    if getattr(annotation, "dim_str", None) == "..." and annotation.array_type is not np.ndarray:
        kind, of = annotation.array_type, annotation.__name__.partition("[")[0]
        if of == "Float":
            return lambda value: isinstance(value, kind) and value.is_floating_point()
        return lambda value: of == "Shaped" and isinstance(value, kind)
    plain = isinstance(annotation, type) and not hasattr(annotation, "array_type") and not issubclass(annotation, Path)
    return lambda value: plain and type(value) is annotation


# ---------------------------------------------------------------------- words


def _names(annotation: Any) -> tuple[str, ...]:
    """All names in the `Literal`s of an annotation, at any depth."""
    members = get_args(annotation)
    names = members if get_origin(annotation) is Literal else sum(map(_names, members), ())
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _form(annotation: Any) -> str:
    """What an annotation allows, in words: `a whole number, 1 or more, or None`."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        described = [one.text for one in members[1:] if isinstance(one, Form)]
        limits = [str(one) for one in members[1:] if isinstance(one, Range)]
        return described[0] if described else ", ".join([_form(members[0]), *limits])
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(map(_form, sorted(members, key=lambda member: member is types.NoneType))))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, members))
    if origin in (tuple, list, Sequence, Iterable):
        return "a list, each " + " / ".join(_form(member) for member in members if member is not ...)
    if origin is Callable:
        return "a function"
    if hasattr(annotation, "array_type"):
        kind = "an array" if annotation.array_type.__module__ == "numpy" else "a tensor"
        of = {"Int": " of whole numbers", "Float": " of floats", "Bool": " of true and false"}
        return f"{kind} [{annotation.dim_str}]{of.get(annotation.__name__.partition('[')[0], '')}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "a text",
        Path: "a path",
        SupportsIndex: "a whole number",
    }
    name = getattr(origin or annotation, "__name__", str(annotation))
    name = f"torch.{name}" if getattr(annotation, "__module__", "") == "torch" else name
    return (
        words.get(annotation)
        or {"NoneType": "None", "Mapping": "a dict", "ndarray": "an array"}.get(name)
        or with_article(name)
    )
