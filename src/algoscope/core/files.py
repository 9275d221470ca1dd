"""Writing to disk so that a crash never leaves half a file, and a full disk is one clear line."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from algoscope.core.errors import RunFolderError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line that names the path and the way out."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder "
            "(--runs-dir, --out)"
        ) from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, never a part.

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
