"""Names and paths of runs. Imports neither PyTorch nor the config, so shell completion is fast."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import RunFolderError
from algoscope.core.files import user_path

CONFIG, SUMMARY, METRICS = "config.json", "run.json", "metrics.jsonl"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
CHECKPOINT = re.compile(r"step_(\d+)\.safetensors")


@checked_arguments
def runs_directory(directory: Folder = None) -> Path:
    """The folder of runs: the given one, else $ALGOSCOPE_RUNS, else `./runs`.

    Args:
        directory: a folder, in which `~` is expanded; by default the environment decides.
    Returns:
        The path, whether or not the folder exists.
    Raises:
        RunFolderError: for what is no path, and for a file.

    Example:
        >>> import algoscope as ag
        >>> ag.runs_directory("elsewhere").name
        'elsewhere'
    """
    path = user_path((os.environ.get("ALGOSCOPE_RUNS") or "runs") if directory is None else directory)
    if path.is_file():
        raise RunFolderError(f"{path} is a file: the runs directory is a folder (--runs-dir, $ALGOSCOPE_RUNS)")
    return path


def checked_name(name: object) -> str:
    """A name for a new run, a study or a part of one. Raises RunFolderError for what cannot name a folder."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    shown = repr(name) if len(repr(name)) < 80 else f"{repr(name)[:60]}... ({len(repr(name)) - 2} characters)"
    raise RunFolderError(
        f"{shown} cannot name a run: use up to 255 letters, digits, '.', '_' and '-', the first a letter or a digit; "
        "--runs-dir chooses the folder"
    )


def new_folder(name: object, directory: str | Path | None) -> Path:
    """The folder of a new run with this name. Everything that makes runs asks here, so no name leaves the directory."""
    return runs_directory(directory) / checked_name(name)


def absolute(path: object) -> Path:
    """A path that a user gave, from the root, so that a change of the working directory does not move it."""
    return Path(os.path.abspath(user_path(path)))  # noqa: PTH100  # links stay as they are


def is_run(path: Path) -> bool:
    """Whether the folder holds a run, finished or not: files of ours, or a config that names its recipe. Folders of
    other tools have a `config.json` too: they must never be taken for a run, and deleted.
    """
    if not os.path.isfile(path / CONFIG):  # noqa: PTH113  # that of Path raises for a name that is too long
        return False
    if any((path / ours).exists() for ours in (SUMMARY, METRICS, "checkpoints")):
        return True
    try:
        return b'"recipe"' in (path / CONFIG).read_bytes()
    except OSError:
        return False


def run_folders(directory: Path) -> list[Path]:
    """The folder of every run in a directory, by name."""
    configs = sorted(directory.glob(f"*/{CONFIG}"))
    return [path.parent for path in configs if not path.parent.name.startswith(".") and is_run(path.parent)]


def find_run(name: str, directory: Path) -> Path:
    """The folder of the run called `name` in a directory, or at that path.

    A recipe's name stands for its only run (`add3` for `add3-s0`). Raises RunFolderError when there is none, and when
    there are several.
    """
    places = [user_path(name)] if "/" in name else [directory / name, user_path(name)] if name else []
    for path in places:
        if is_run(path):
            return path
    known = [path.name for path in run_folders(directory)]
    members = [other for other in known if re.fullmatch(re.escape(name) + r"-s\d+", other)]
    if len(members) == 1:
        return directory / members[0]
    if members:
        raise RunFolderError(f"{name!r} is ambiguous, it could be {', '.join(members)}: name one")
    raise RunFolderError(
        f"no run {name!r} in {directory}: {'known: ' + ', '.join(known) if known else 'it has no runs'}; "
        "train one with `algoscope train RECIPE`, or choose another folder with --runs-dir"
    )


def is_known(name: str, directory: Path) -> bool:
    """Whether `find_run` finds a run."""
    try:
        find_run(name, directory)
    except RunFolderError:
        return False
    return True


def address(folder: Path) -> str:
    """How a command names a run, quoted for the shell: by name in the default directory, else by its path."""
    path = absolute(folder)
    try:
        by_name = path.parent == absolute(runs_directory())
    except RunFolderError:
        by_name = False
    return shlex.quote(path.name if by_name else str(path))


def split_name(text: str, exists: Callable[[str], bool]) -> tuple[str, str | None, str]:
    """`NAME@STEP?QUERY` as its three parts; the step is None where there is no `@`.

    A path may have both separators in it: the longest part that exists is the path.
    """
    for end in (len(text), *(at for at in reversed(range(len(text))) if text[at] == "?")):
        path, query = text[:end], text[end + 1 :]
        if exists(path):
            return path, None, query
        path, _, step = path.rpartition("@")
        if step.isdecimal() and exists(path):
            return path, step, query
    path, _, query = text.partition("?")
    path, at, step = path.partition("@")
    return path, step if at else None, query


def steps_in(folder: Path, part: str = "checkpoints") -> list[int]:
    """Steps that have a checkpoint, or an optimiser state in `part`, ascending."""
    names = (CHECKPOINT.fullmatch(path.name) for path in folder.glob(f"{part}/step_*.safetensors"))
    return sorted(int(name[1]) for name in names if name)
