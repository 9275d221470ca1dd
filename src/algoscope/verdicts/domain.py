"""Which inputs a verdict covers: all of them, or an honest sample with its interval."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import binomtest

from algoscope.core.errors import ConfigError
from algoscope.data import seeded
from algoscope.tasks.base import Task, Tokens

EXHAUSTIVE_UP_TO = 10**8
SAMPLE_OF_LARGE = 100_000
SAMPLE_SEED = 2025


@dataclass(frozen=True)
class Domain:
    """The inputs to be checked: `checked` of `size`."""

    task: Task
    size: int
    checked: int
    method: Literal["exhaustive", "sampled"]

    def chunks(self, rows: int, device: torch.device) -> Iterator[Tokens]:
        """The inputs in portions of `rows`; exhaustive ones in lexicographic order, so that neighbours begin alike."""
        for number, start in enumerate(range(0, self.checked, rows)):
            n = min(rows, self.checked - start)
            if self.method == "exhaustive":
                yield self.task.at(torch.arange(start, start + n, device=device))
            else:
                tokens = self.task.sample(n, seeded(device, SAMPLE_SEED, number))
                yield tokens[self.task.keys(tokens).sort().indices]

    def interval(self, wrong: int) -> list[float] | None:
        """95 % Clopper-Pearson bounds on the accuracy; None when every input was counted."""
        if self.method == "exhaustive":
            return None
        bounds = binomtest(self.checked - wrong, self.checked).proportion_ci(0.95, method="exact")
        return [float(bounds.low), float(bounds.high)]


def domain_of(task: Task, sample: int | None = None) -> Domain:
    """Every input where there are at most 10^8 of them and no sample is asked for; else independent uniform draws.

    Raises ConfigError for a sample below 1.
    """
    if sample is not None and sample < 1:
        raise ConfigError(f"a sample of {sample} inputs says nothing: ask for 1 or more")
    if sample is None and task.domain_size <= EXHAUSTIVE_UP_TO:
        return Domain(task, task.domain_size, task.domain_size, "exhaustive")
    return Domain(task, task.domain_size, sample or SAMPLE_OF_LARGE, "sampled")
