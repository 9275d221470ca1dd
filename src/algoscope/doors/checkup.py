"""Versions, devices, threads, and what is missing: `algoscope doctor`."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.draw import find_browser
from algoscope.core.threads import free_cores
from algoscope.recipes.addition import add3
from algoscope.runs.paths import runs_directory
from algoscope.training.population import worth_stacking
from algoscope.version import __version__


@checked_arguments
def checkup(runs_dir: Folder = None) -> list[dict[str, Any]]:
    """Report versions, devices, threads and missing programs of this machine.

    Args:
        runs_dir: where runs are; by default $ALGOSCOPE_RUNS, else `./runs`.
    Returns:
        One row per item: `what` it is, its value `here`, and the `way_out` (how to install it) where it is missing.

    Example:
        >>> import algoscope as ag
        >>> [row["what"] for row in ag.checkup()][:3]
        ['algoscope', 'python', 'torch']
    """
    rows = [
        _row("algoscope", __version__),
        _row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _row("torch", torch.__version__),
        _row("device cpu", f"{os.cpu_count()} cores, {free_cores()} free now"),
        _row("device cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        _row("threads", f"{free_cores()} for certification now; training add3 uses {add3().train.threads}"),
        _row("populations", _populations()),
        _runs(runs_directory(runs_dir).resolve()),
    ]
    browser = find_browser()
    rows.append(
        _row("browser", browser)
        if browser
        else _row("browser", "none: PNG and SVG cannot be written", "apt install chromium, or `plotly_get_chrome`")
    )
    return rows


def _populations() -> str:
    """How `train --seeds` would divide its members now."""
    cpu, config = torch.device("cpu"), add3()
    small = config.model_copy(update={"train": config.train.model_copy(update={"batch": 64})})
    stacked = {what: worth_stacking(cfg, cpu) for what, cfg in (("add3", config), ("add3 with batch 64", small))}
    sizes = ", ".join(f"{what}: {'one by one' if n == 1 else f'{n} in a stack'}" for what, n in stacked.items())
    return f"{free_cores()} processes of one thread each; {sizes}"


def _row(what: str, here: str, way_out: str = "") -> dict[str, Any]:
    return {"what": what, "here": here, "way_out": way_out}


def _runs(directory: Path) -> dict[str, Any]:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    way_out = "" if writable else "choose another with --runs-dir or $ALGOSCOPE_RUNS"
    return _row("runs", f"{directory}, {free:.0f} GiB free{'' if writable else ', not writable'}", way_out)
