"""Paths of runs, and finding a run by name. Imports neither PyTorch nor the config, so shell completion is fast."""

import os
import re
from pathlib import Path

from algoscope.core.errors import RunFolderError

CONFIG, SUMMARY, METRICS = "config.json", "run.json", "metrics.jsonl"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runs_directory(directory: str | Path | None = None) -> Path:
    """The folder of runs: the given one, else $ALGOSCOPE_RUNS, else `./runs`.

    Args:
        directory: a folder; by default the environment decides.
    Returns:
        The path, whether or not the folder exists.

    Example:
        >>> import algoscope as ag
        >>> ag.runs_directory("elsewhere").name
        'elsewhere'
    """
    return Path(directory or os.environ.get("ALGOSCOPE_RUNS") or "runs")


def is_run(path: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return (path / CONFIG).is_file()


def run_folders(directory: Path) -> list[Path]:
    """The folder of every run in a directory, by name."""
    return [path.parent for path in sorted(directory.glob(f"*/{CONFIG}"))]


def find_run(name: str, directory: Path) -> Path:
    """The folder of the run called `name` in a directory, or at that path.

    A recipe's name stands for its only run (`add3` for `add3-s0`). Raises RunFolderError when there is none, and when
    there are several.
    """
    if "/" not in name and is_run(directory / name):
        return directory / name
    if is_run(Path(name)):
        return Path(name)
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


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return [int(path.stem.removeprefix("step_")) for path in sorted(folder.glob("checkpoints/step_*.safetensors"))]
