"""Paths as users write them, and atomic writes: a crash never leaves a partial file, and a full disk raises a one-line
error.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from algoscope.core.errors import RunFolderError


def user_path(path: object) -> Path:
    """A path that a user gave, with `~` expanded: shells leave it after `=`, and in variables and Python there is none.

    Every path that comes from outside goes through here. Raises RunFolderError for what cannot be a path, and for a `~`
    whose home folder is not known.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise RunFolderError(f"{path!r} is no path: give a text or a pathlib.Path")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise RunFolderError(f"{text!r} is no path: it {'has a NUL character' if text else 'is empty'}")
    expanded = os.path.expanduser(text)  # noqa: PTH111  # Path's raises where the home folder is not known
    if expanded.startswith("~") and not Path(expanded).exists():
        home = Path(expanded).parts[0]
        raise RunFolderError(f"cannot expand {home} in {text!r}: its home folder is not known; write the whole path")
    return Path(expanded)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a RunFolderError that names the path and a remedy."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder "
            "(--runs-dir, --out)"
        ) from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary file, then rename it: a reader sees the old file or the new one, never a partial one.

    Raises RunFolderError where the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
