"""`run.json`: the final numbers of a run, with versions and processor."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from algoscope.config import RunConfig
from algoscope.version import __version__


class Part(BaseModel):
    """A frozen part of a summary; unknown fields, as a later version may write, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Processor(Part):
    """The CPU, and the vector instructions that PyTorch uses on it. The same seed gives the same weights only where
    both are the same.
    """

    name: str
    capability: str


class Inference(Part):
    """One inferred field of an imported model: its name, its value, and how it was inferred."""

    what: str
    value: Any
    how: str


class ImportedFrom(Part):
    """The file of another tool that a run was imported from."""

    file: str
    sha256: str
    account: tuple[Inference, ...]
    left_out: tuple[str, ...]


class MergedFrom(Part):
    """The run whose low-rank updates or factors were multiplied out."""

    subject: str
    weights_sha256: str


class RunSummary(Part):
    """The final numbers of a run.

    `loss` is in nats per position that training reads, `test_accuracy` the share of whole answers right on inputs that
    were not trained on (of an imported or merged model: on up to 2,000 of the task's). `seconds` is training alone.
    `stacked` is the number of models trained in one stack.
    """

    recipe: str
    seed: int
    steps: int
    examples: int
    seconds: float
    loss: float
    test_accuracy: float
    parameters: int
    trained_parameters: int | None = None
    weights_sha256: str
    device: str = "cpu"
    threads: int
    stacked: int | None = None
    versions: dict[str, str]
    processor: Processor | None = None  # absent from files of earlier versions
    imported: ImportedFrom | None = None
    merged: MergedFrom | None = None

    @property
    def last_checkpoint(self) -> int:
        """The step of the final weights; those of other tools and merged ones are step 1."""
        return self.steps if self.imported is None and self.merged is None else 1

    @classmethod
    def of(cls, config: RunConfig, **results: Any) -> "RunSummary":
        """The summary of a run that has just finished: its results, with versions and processor."""
        return cls(
            recipe=config.recipe,
            seed=config.seed,
            threads=torch.get_num_threads(),
            versions={
                "algoscope": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            processor=this_processor(),
            **results,
        )


@cache
def this_processor() -> Processor:
    """The processor of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Processor(
        name=names[0] if names else platform.processor() or platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
    )
