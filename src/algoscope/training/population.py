"""Many runs together: every member is an ordinary run, equal to training it alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from algoscope.config import RunConfig
from algoscope.core.errors import DivergedError
from algoscope.training.runs import Run
from algoscope.training.train import train


@dataclass(frozen=True)
class Population:
    """What became of the members: those that are whole, and why the others are not."""

    runs: Mapping[str, Run]
    failed: Mapping[str, str]


def train_many(
    members: Mapping[str, RunConfig],
    *,
    runs_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Population:
    """Train the members, name to config, each into its own run folder; a member that diverges does not stop the rest.

    With `resume`, members that are whole are taken as they are and interrupted ones go on. Raises what `train` raises,
    but for a divergence, which is said in `failed`.
    """
    runs, failed = {}, {}
    for name, config in members.items():
        try:
            runs[name] = train(
                config, name=name, runs_dir=runs_dir, resume=resume, device=device, progress=progress
            )  # fmt: skip
        except DivergedError as error:
            failed[name] = str(error)
    return Population(runs, failed)
