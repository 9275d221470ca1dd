"""Code of one's own: a class, a function or a value from a file that the user names, `FILE.py:NAME`.

Such a file is run only because it was named in this command or this call; nothing that is read from a run folder, a
config or a checkpoint leads here.
"""

import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from algoscope.core.errors import Interrupted, OwnCodeError, UnknownNameError, shown, with_article
from algoscope.core.files import user_path

_loaded: dict[tuple[Path, str], ModuleType] = {}  # by path and content: a file that was changed is run again
_MISSING = object()
_lock = threading.RLock()  # a file may open another


@dataclass(frozen=True)
class OwnCode:
    """Where an object comes from: the file, its name there, and the SHA-256 of the file as it was run."""

    path: Path
    name: str
    sha256: str

    @property
    def address(self) -> str:
        return f"{self.path}:{self.name}"


def load_named(address: str, what: str, fits: Callable[[object], bool] = lambda _: True) -> tuple[object, OwnCode]:
    """The object that `FILE.py:NAME` names. The file runs once for each content, with its folder on `sys.path`.

    Args:
        address: a file, a colon, and a name in it, dotted where it is within a class.
        what: what it should be, for messages: "a task", "a model".
        fits: whether an object is one.
    Raises:
        OwnCodeError: for an address of another form, a file that cannot be read or run, and an object that is something
            else.
        UnknownNameError: for a name that the file does not have.
    """
    file, _, name = address.rpartition(":")
    if not file or not all(part.isidentifier() for part in name.split(".")):
        stem = address.rstrip(":") if address.rstrip(":").endswith(".py") else "FILE.py"
        raise OwnCodeError(f"{shown(address)} does not name {what}: write {stem}:NAME, with its name in the file")
    path = Path(os.path.abspath(user_path(file)))  # noqa: PTH100  # links stay as they are
    source = _read(path, file, name)
    sha256 = hashlib.sha256(source).hexdigest()
    with _lock:
        module = _loaded.get((path, sha256)) or _run(path, source, sha256)
        value: object = module
        with running(path):
            for part in name.split("."):
                value = getattr(value, part, _MISSING)
    if value is _MISSING:
        raise UnknownNameError(f"name in {file}", name, _names(module, fits))
    if not fits(value):
        kind = "a class" if isinstance(value, type) else with_article(type(value).__name__)
        known = ", ".join(_names(module, fits)) or "none"
        raise OwnCodeError(f"{address} is {kind}, not {what}; known in this file: {known}")
    return value, OwnCode(path, name, sha256)


@contextmanager
def running(path: Path) -> Iterator[None]:
    """Run code of a file: its folder is on `sys.path`, and what it prints goes to standard error.

    Raises OwnCodeError, with the line in the file, for whatever the code raises.
    """
    folder, arguments = str(path.parent), sys.argv
    hidden = _hide_namesakes(path.parent)
    sys.path.insert(0, folder)
    sys.argv = [str(path)]  # ours are not for it
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (OwnCodeError, Interrupted, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise OwnCodeError(f"{path.name} cannot be run{_line(error, path)}: {reason(error)}") from error
    finally:
        sys.argv = arguments
        if folder in sys.path:
            sys.path.remove(folder)
        sys.modules.update(hidden)


def reason(error: BaseException) -> str:
    """An exception in words: its kind and its message."""
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # the message of an exception is code of the user's too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, path: Path) -> str:
    """Where in the file an error arose; in a file beside it, where the syntax of that one is wrong."""
    if isinstance(error, SyntaxError) and error.lineno:
        other = "" if error.filename in (None, str(path)) else f" of {Path(str(error.filename)).name}"
        return f", line {error.lineno}{other}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _read(path: Path, file: str, name: str) -> bytes:
    if path.suffix != ".py":
        beside = path.with_name(f"{path.name}.py")
        way = f"did you mean {file}.py:{name}?" if beside.is_file() else f"write FILE.py:{name}"
        raise OwnCodeError(f"{file} is no file of Python, whose name ends in .py: {way}")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there" if not path.exists() else "not a plain file"
        raise OwnCodeError(f"cannot read {file}: it is {what}; give the path of a file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise OwnCodeError(f"cannot read {file}: {error.strerror or error}") from error


def _run(path: Path, source: bytes, sha256: str) -> ModuleType:
    """The file as a module of its own name, so that files called alike, and versions of one, are kept apart."""
    place = hashlib.sha256(os.fsencode(path)).hexdigest()
    name = f"{path.stem}_{place[:8]}_{sha256[:8]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        with running(path):
            exec(compile(source, str(path), "exec"), module.__dict__)  # the user named the file
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[path, sha256] = module
    return module


def _hide_namesakes(folder: Path) -> dict[str, ModuleType]:
    """Take out of `sys.modules` what would be imported in place of a file in this folder, and return it."""
    files = [*folder.glob("*.py"), *folder.glob("*/__init__.py")]
    neighbours = {(path.parent.name if path.stem == "__init__" else path.stem): str(path) for path in files}
    ours = {__name__.partition(".")[0], *sys.stdlib_module_names}
    loaded = {name: getattr(sys.modules.get(name), "__file__", path) for name, path in neighbours.items()}
    other = {name for name, path in neighbours.items() if name not in ours and loaded[name] != path}
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in other}
    for name in hidden:
        del sys.modules[name]
    return hidden


def _names(module: ModuleType, fits: Callable[[object], bool]) -> list[str]:
    """What the file itself defines and could be meant; where it defines nothing such, what it imports."""
    public = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and fits(value)
    }
    defined = [name for name, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    return defined or list(public)
