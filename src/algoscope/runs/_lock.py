"""The lock of a run folder: held while the run is trained or removed, and freed by the system when a process dies."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from algoscope.core.files import disk_errors
from algoscope.runs.paths import CONFIG

LOCK = ".lock"
PATIENCE = 1.0  # seconds that a lock waits, so that a process that only asks never turns a trainer away
ASKING = 0.1  # seconds that a question waits, so that two that ask at once do not mistake each other for a trainer


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder within the body; False where another process holds it."""
    lock = FileLock(folder / LOCK)
    with disk_errors(folder), suppress(Timeout):
        lock.acquire(timeout=PATIENCE)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock now."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=ASKING, poll_interval=ASKING / 10)
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written is not being trained
        return False
    lock.release()
    return False


def delete(folder: Path) -> None:
    """Delete a folder whose lock is held; `config.json` goes first, so that an interrupted deletion leaves no run."""
    with disk_errors(folder):
        if folder.is_symlink():
            return folder.unlink()
        (folder / CONFIG).unlink()
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
        (folder / LOCK).unlink()
        with suppress(OSError):  # not empty: another process has just begun a run here
            folder.rmdir()
