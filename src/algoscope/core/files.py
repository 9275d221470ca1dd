"""Paths as users write them, and atomic writes: a crash never leaves a partial file, and a full disk raises a one-line
error.
"""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from algoscope.core.errors import DrawingError, RunFolderError, shown

REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder (--runs-dir, --out)",
    errno.EDQUOT: "free some space or choose another folder (--runs-dir, --out)",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# How a file of each kind begins and ends: a file is never written under a name that says something else
CONTENTS = {
    ".png": ((b"\x89PNG\r\n\x1a\n",), (b"IEND\xaeB`\x82",)),
    ".svg": ((b"<svg",), (b"</svg>",)),
    ".html": ((b"<",), (b"</html>",)),
    ".json": ((b"{", b"["), (b"}", b"]")),
}

LONGEST_NAME = 255  # bytes of a file name, on every common file system


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
    for part in Path(text).parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise RunFolderError(f"{shown(part)} cannot name a file: it is longer than {LONGEST_NAME} bytes")
    expanded = os.path.expanduser(text)  # noqa: PTH111  # Path's raises where the home folder is not known
    if expanded.startswith("~") and not Path(expanded).exists():
        home = Path(expanded).parts[0]
        raise RunFolderError(f"cannot expand {home} in {text!r}: its home folder is not known; write the whole path")
    return Path(expanded)


def output_path(path: object, endings: Iterable[str]) -> Path:
    """The path of a file to be written, checked before the work that fills it.

    Raises DrawingError for another ending, and RunFolderError for a folder and where nothing can be written.
    """
    path = user_path(path)
    if path.suffix.lower() not in endings:
        raise DrawingError(f"cannot write {path.name!r}: the ending must be one of {', '.join(endings)}")
    with disk_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{existing}: {os.strerror(errno.EACCES)}")
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a RunFolderError that names the path, what failed, and a remedy for that."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another folder (--runs-dir, --out)")
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary file, then rename it: a reader sees the old file or the new one, never a partial one.

    Raises RunFolderError where the disk is full or the folder cannot be written, and DrawingError for content that is
    not what the ending says.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content  # lone surrogates
    begin, end = CONTENTS.get(path.suffix.lower(), ((b"",), (b"",)))
    if not (data.lstrip().startswith(begin) and data.rstrip().endswith(end)):
        kind = path.suffix[1:].upper()
        raise DrawingError(f"cannot write {path}: what was made for it ({len(data):,} bytes) is no {kind}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if Path(temporary).stat().st_size != len(data):
                raise OSError(errno.EIO, "the file is shorter than what was written to it")
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
