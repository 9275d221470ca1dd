"""Any study by its name: most compare when their members arrive; some are measured in a way of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algoscope.core.finding import Finding
from algoscope.verdicts.studies import comparing
from algoscope.verdicts.studies.length_study import length_study
from algoscope.verdicts.studies.plans import Study

MEASURED = {"length": length_study}


def study(
    name: str | Study,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Finding:
    """Train every variant of a study with every seed, compare them, and say what was expected and came true.

    `length` is described at `verdicts.length_study.length_study`, the others, and plans of your own, at
    `verdicts.comparing.study`. Raises
    UnknownNameError for a study that there is not, ConfigError without seeds, and what `train` raises.
    """
    if isinstance(name, str) and name in MEASURED:
        return MEASURED[name](seeds=seeds, settings=settings, runs_dir=runs_dir, device=device, progress=progress)
    return comparing.study(
        name, seeds=seeds, settings=settings, runs_dir=runs_dir, device=device, progress=progress
    )  # fmt: skip
